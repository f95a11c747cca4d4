"""What the server of :mod:`apart` imports, so that those it forks need not."""

import gymnasium
import matplotlib.pyplot
import numpy
import torch.fx.experimental.proxy_tensor
import torch.utils.tensorboard

import rl_as_inference.agents
import rl_as_inference.arviz_data
import rl_as_inference.cli.application
import rl_as_inference.inspect.plots
import rl_as_inference.style

rl_as_inference.cli.application.load()
gymnasium.make("Pendulum-v1").close()
rl_as_inference.arviz_data.pareto_shape(numpy.arange(100.0))
rl_as_inference.style.new_axes(None).figure.canvas.draw()
matplotlib.pyplot.close("all")
torch.set_num_threads(1)
