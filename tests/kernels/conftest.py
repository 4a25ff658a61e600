import os

import pytest
import torch

if not torch.cuda.is_available():  # the kernels of a GPU, without one; Triton reads this when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

MOST = 2  # combinations of each test, but all of them with BRENIER_TRITON=all


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the battery, an even part runs in Triton's interpreter, which is slow."""
    if os.environ.get("BRENIER_TRITON") == "all":
        return
    tests: dict[str, list[pytest.Item]] = {}
    left_out = set()
    for item in items:
        chosen = getattr(item, "callspec", None)
        # arrays among the parameters do not compare to one truth value
        if chosen is None or not any(isinstance(value, str) and value == "triton" for value in chosen.params.values()):
            continue
        if chosen.params.get("kind") in ("matrix", "columns"):  # which the reference has on a GPU
            left_out.add(id(item))
        else:
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for many in tests.values():
        kept = {round(k * (len(many) - 1) / (MOST - 1)) for k in range(MOST)}
        left_out |= {id(item) for k, item in enumerate(many) if len(many) > MOST and k not in kept}
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if id(item) in left_out])
        items[:] = [item for item in items if id(item) not in left_out]
