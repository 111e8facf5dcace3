"""Tables, and beside each what goes in, what comes out and the statements over it."""

from backend.models.task import Task
from backend.models.user import User

__all__ = ["Task", "User"]
