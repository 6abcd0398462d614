"""Checks of arguments by type hints and tables of ranges, and the nearest right names."""

import inspect
import math
from collections.abc import Sequence as SequenceClass
from difflib import get_close_matches
from functools import lru_cache, wraps
from numbers import Integral, Real
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Optional,
    Sequence,
    Tuple,
    Union,
    get_type_hints,
)

import numpy as np

from .errors import UsageError

# What a number may be, with the words for it.
Range = Tuple[Callable[[Any], bool], str]
ANY_NUMBER: Range = (lambda number: number == number, 'a number')
AT_LEAST_0: Range = (lambda number: 0 <= number < math.inf, '0 or more')
AT_LEAST_1: Range = (lambda number: 1 <= number < math.inf, '1 or more')
ABOVE_0: Range = (lambda number: 0 < number < math.inf, 'above 0')
FROM_0_TO_1: Range = (lambda number: 0 <= number <= 1, 'from 0 to 1')

_KINDS = {
    int: (Integral, 'a whole number'),
    float: (Real, 'a number'),
    bool: (Integral, 'True or False'),
    str: (str, 'text'),
    dict: (dict, 'a dict'),
    type(None): (type(None), 'None'),
}


def checked(**ranges: Range) -> Callable[[Callable], Callable]:
    """Decorates ``__init__`` so that it takes only arguments of the right names, kinds and ranges.

    Libraries for this (typeguard, pydantic) would be one more package to install beside torch and
    mmengine, and know no nearest names.

    Args:
        ranges: The ranges of arguments that are numbers; the kinds are the type hints.

    Raises:
        UsageError: by the decorated method, naming the argument.
    """

    def decorator(init: Callable) -> Callable:
        @wraps(init)
        def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
            mro = type(self).__mro__
            inits = [vars(each).get('__init__') for each in mro]
            own = inits.index(checked_init) if checked_init in inits else 0
            check_names(kwargs, accepted_names(mro[own:]), type(self).__name__)
            check_arguments(init, type(self).__name__, (self, *args), kwargs, ranges)
            init(self, *args, **kwargs)

        return checked_init

    return decorator


def check_arguments(
    function: Callable,
    name: str,
    args: Sequence[Any],
    kwargs: Dict[str, Any],
    ranges: Dict[str, Range],
) -> None:
    """Raises UsageError unless a function can be called like this.

    Args:
        function: The function, with type hints.
        name: What it makes, for messages.
        args: Its arguments by position.
        kwargs: Its arguments by name.
        ranges: The ranges of arguments that are numbers.
    """
    signature, hints = _signature(function)
    check_names(kwargs, accepted_names([function]), name)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise UsageError(f'{name}: {error}.') from None
    for key, value in given.items():
        if key in hints:
            check_value(f'{name}: {key}', value, hints[key], ranges.get(key))


@lru_cache(maxsize=None)
def _signature(function: Callable) -> Tuple[inspect.Signature, Dict[str, Any]]:
    signature = inspect.signature(function)
    hints = get_type_hints(function)
    for key, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            hints.pop(key, None)
    return signature, hints


def accepted_names(functions: Sequence[Any]) -> Optional[List[str]]:
    """The names of the arguments of a function; None if it takes any.

    Args:
        functions: A function; or a class and its bases, to which it hands on ``**kwargs``.
    """
    names: List[str] = []
    for each in functions:
        function = vars(each).get('__init__') if inspect.isclass(each) else each
        if function is None:
            continue
        parameters = inspect.signature(function).parameters.values()
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names += [each.name for each in parameters if each.kind in by_name]
        if all(each.kind != each.VAR_KEYWORD for each in parameters):
            return [name for name in dict.fromkeys(names) if name != 'self']
    return None


def check_names(names: Iterable[str], known: Optional[Sequence[str]], what: str) -> None:
    """Raises UsageError if there are names that are not known, with the nearest right ones."""
    unknown = [name for name in names if known is not None and name not in known]
    if unknown:
        raise UsageError(unknown_names(unknown, known, what))


def unknown_names(unknown: Sequence[str], known: Sequence[str], what: str) -> str:
    """The sentence about arguments that ``what`` does not have."""
    near = {name: nearest(name, known) for name in unknown}
    if any(near.values()):
        mend = 'did you mean ' + ', '.join(filter(None, near.values())) + '?'
    else:
        mend = f'it takes {", ".join(known)}.'
    if not all(near.values()):
        mend += ' If the base config left them, add _delete_=True to the dict.'
    return f'{what} has no argument {", ".join(unknown)}: {mend}'


def nearest(name: str, known: Iterable[str]) -> Optional[str]:
    """The known name that is most like this one, if any is like it."""
    by_lower = {each.lower(): each for each in known}
    close = get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def check_value(what: str, value: Any, hint: Any, allowed: Optional[Range] = None) -> None:
    """Raises UsageError unless a value is of the kind that a type hint says, and in a range."""
    if not _is_kind(value, hint):
        words = f', {allowed[1]}' if allowed else ''
        raise UsageError(f'{what} must be {_in_words(hint)}{words}, got {value!r}.')
    numbers = value if _is_list(value) else [value]
    if allowed and not all(allowed[0](n) for n in numbers if isinstance(n, Real)):
        raise UsageError(f'{what} must be {allowed[1]}, got {value!r}.')


def _is_kind(value: Any, hint: Any) -> bool:
    origin, options = getattr(hint, '__origin__', None), getattr(hint, '__args__', ())
    if origin is Union:
        return any(_is_kind(value, each) for each in options)
    if inspect.isclass(origin) and issubclass(origin, Sequence):  # not a string
        item = options[0] if options and origin is not tuple else Any
        return _is_list(value) and all(_is_kind(each, item) for each in value)
    hint = dict if origin is dict else hint
    if hint is bool:
        return isinstance(value, (Integral, np.bool_)) and value in (0, 1)
    if hint in _KINDS:
        return isinstance(value, _KINDS[hint][0]) and not isinstance(value, bool)
    return hint is Any or not inspect.isclass(hint) or isinstance(value, hint)


def _is_list(value: Any) -> bool:
    return isinstance(value, SequenceClass) and not isinstance(value, (str, bytes))


def _in_words(hint: Any) -> str:
    origin, options = getattr(hint, '__origin__', None), getattr(hint, '__args__', ())
    if origin is Union:
        return ' or '.join(dict.fromkeys(map(_in_words, options)))
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        item = _in_words(options[0]) if options and options[0] in _KINDS else ''
        return f'a list{item and " of " + item.replace("a whole number", "whole numbers")}'
    hint = dict if origin is dict else hint
    return _KINDS[hint][1] if hint in _KINDS else str(getattr(hint, '__name__', hint))
