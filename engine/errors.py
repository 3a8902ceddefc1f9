"""Every error the engine package raises on purpose. Torch-free.

EngineError
  ConfigError          an option or a combination of options that cannot work
  CheckpointError      a model file that is missing, damaged or of an unsupported kind
  RequestRejected      a request that can never be served; carries a messages.Fault
  EngineDead           the engine process is gone or does not answer
  RankLost             a process of a tensor-parallel group is gone
  InvariantViolated    our own bookkeeping is wrong: a bug
"""

from engine.messages import Fault


class EngineError(Exception):
    """Base of all; the message is one sentence fit to be shown to a user."""


class ConfigError(EngineError):
    """An option or a combination of options that cannot work."""


class CheckpointError(EngineError):
    """A model file that is missing, damaged or of an unsupported kind."""


class RequestRejected(EngineError):
    """A request that can never be served."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class EngineDead(EngineError):
    """The engine process is gone or does not answer."""


class InvariantViolated(EngineError):
    """Our own bookkeeping is wrong: a bug."""


class RankLost(EngineError):
    """Another process of a tensor-parallel group has ended: this one must end too."""
