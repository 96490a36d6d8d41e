"""Changes of an experiment while it runs: a part of a user's own class may write to its attributes."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ..core.experiment import Experiment
from ..core.reading.description import describe
from ..core.validation import fields_of

log = logging.getLogger(__name__)

LARGE = ("population", "validation", "test", "model")  # parts that are not read at every round


class SourceDrift:
    """Follows the description of an experiment's parts that are of a user's own class.

    The description of a run is what it was at the last commit. So whoever resumes the run with parts that begin anew is
    refused, as the rounds to come would not be those of a run that was never interrupted.
    """

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._described = experiment.describe()
        own = {path.partition(".")[0] for path in self._described if path.endswith("()")}
        self._names = sorted(own.difference(LARGE))
        self._is_said = False

    def changed(self) -> Mapping[str, str] | None:
        """Return the experiment's description, if it is another than at the last call; warn of it once."""
        if not self._names:
            return None
        now = {path: text for path, text in self._described.items() if path.partition(".")[0] not in self._names}
        for name in self._names:
            describe(name, fields_of(self._experiment)[name], now)
        differing = sorted(
            path for path in now.keys() | self._described.keys() if now.get(path) != self._described.get(path)
        )
        self._described = now
        if differing and not self._is_said:
            self._is_said = True
            log.warning(
                "%s changes while the run goes on, and a store keeps no attributes: the run can be resumed only with "
                "them as it left them. Keep what changes in a strategy's state, and draw from the keys it is handed",
                differing[0],
            )
        return now if differing else None
