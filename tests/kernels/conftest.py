import os

import torch

if not torch.cuda.is_available():  # the kernels of a GPU, without one; Triton reads this when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
