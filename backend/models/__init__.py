"""The tables, each with its request and response models and the statements over it."""

from backend.models.task import Task
from backend.models.user import User

__all__ = ["Task", "User"]
