"""Tables, and beside each what goes in, what comes out and the statements over it."""

from backend.models.task import TaskTable
from backend.models.user import UserTable

__all__ = ["TaskTable", "UserTable"]
