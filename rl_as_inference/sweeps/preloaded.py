"""What runs import late: imported before processes are forked, they need not do it each."""

import torch.fx.experimental.proxy_tensor
import torch.utils.tensorboard  # noqa: F401
