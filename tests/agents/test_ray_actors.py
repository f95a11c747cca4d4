"""Actors in a Ray cluster, where Ray is installed: the same as in processes, one of them killed too."""

import importlib.util
import os
import signal
import time

import pytest
from known_dynamics import Known, faults
from small_agents import sac

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
long = pytest.mark.skipif(
    os.environ.get("RLAI_SCALE") != "long", reason="takes long; RLAI_SCALE=long, or make test-scale, runs it"
)


def test_an_address_that_does_not_answer_is_an_error_at_once():
    agent, start = sac(Known, num_actors=2, ray="127.0.0.1:9"), time.monotonic()
    for call in (agent.connect_actors, lambda: agent.learn(10)):
        with pytest.raises(ValueError, match=r"ray: 127.0.0.1:9 does not answer as Ray does"):
            call()
    assert time.monotonic() - start < 60  # of which importing Ray is the most
    assert agent.num_steps == 0
    with pytest.raises(ValueError, match="ray must be HOST:PORT"):
        sac(Known, num_actors=2, ray="somewhere")


@long
def test_two_actors_of_a_local_cluster():
    """What they send is true, one that is killed is replaced and said, and their runs are those of processes."""
    agent = sac(Known, num_actors=2, ray="local", actor_steps=4, buffer_size=2000)
    try:
        agent.learn(60)
        other = sac(Known, num_actors=2, actor_steps=4, buffer_size=2000)
        other.learn(60)
        other.close()
        assert agent.replay.state.equal(other.replay.state)
        beside = sac(Known, num_actors=1, ray="local", actor_steps=4, buffer_size=2000)
        beside.learn(8)
        beside.close()  # the cluster is the first one's, too, which stays in it
        agent.learn(8)
        pid = int(agent._loop.actors.pool.where[0].split()[1])
        os.kill(pid, signal.SIGKILL)
        with pytest.warns(UserWarning, match=rf"actor 0 \(process {pid} of .*\) died"):
            agent.learn(100)
        deadline = time.monotonic() + 300
        while not all(block is not None for block in agent._loop.actors.pool._blocks):
            agent.learn(1)
            assert time.monotonic() < deadline
        assert (len(agent.replay), faults(agent.replay, cut=1)) == (min(agent.num_steps, 2000), [])
    finally:
        agent.close()
