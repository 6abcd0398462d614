"""Modules that refuse weights which cannot be theirs, whoever loads them.

mmengine loads without strictness: a module whose weights have other names or shapes would stay as
it was, with but a line in the log.
"""

from typing import Any, Mapping, Optional

from torch import Tensor, nn

from ..errors import UsageError


class GuardedModule(nn.Module):
    """A module that explains why a state dict is not its own, and raises that on loading."""

    def explain_mismatch(self, state_dict: Mapping[str, Tensor], prefix: str) -> Optional[str]:
        """Why the keys beginning with ``prefix`` cannot be loaded, with the mend; None if they can.

        Keys that are absent are no reason.
        """
        raise NotImplementedError

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any
    ) -> None:
        problem = self.explain_mismatch(state_dict, prefix)
        if problem:
            raise UsageError(f'the checkpoint does not fit {prefix.rstrip(".")}: {problem}')
        super()._load_from_state_dict(state_dict, prefix, *args)
