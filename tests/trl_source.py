"""TRL's functions, compiled out of its source files as they stand there: its trainers take half a minute to import."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F

TRL = Path(find_spec("trl").origin).parent


@cache
def tree(path):
    return ast.parse((TRL / path).read_text(encoding="utf-8"))


def run(nodes, **names):
    exec(compile(ast.Module(nodes, []), "trl", "exec"), names)
    return names


def trl_function(path, name, **names):
    node = next(n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef) and n.name == name)
    node.decorator_list = []
    return run([node], torch=torch, F=F, **names)[name]
