"""Action masks at the edge: in every form that people give them, beside observations, and held to allow something."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import NormalizeObservation

from rl_as_inference.processes.action_masks import flat_mask
from rl_as_inference.processes.environments import Environments, StepError

PAIR = MultiDiscrete([3, 2])


class Gates(gymnasium.Env):
    """Step by step it gives the masks that it was told, and ends after the last; in ``info``, or as a key."""

    def __init__(self, masks, space=None, *, key=False, seen=None, ends="terminated"):
        self.masks, self.key, self.ends, self.resets = masks, key, ends, 0
        self.action_space = Discrete(3) if space is None else space
        seen = Discrete(9, start=5) if seen is None else seen
        self.observation_space = Dict({"place": seen, "action_mask": MultiBinary(3)}) if key else seen

    def _answer(self):
        mask = self.masks[self.time]
        place = np.int64(5 + self.time)
        if isinstance(self.observation_space, Box):
            place = np.full(1, self.time, np.float32)
        if self.key:
            return {"place": place, "action_mask": np.array(mask, np.int8)}, {}
        return place, {} if mask is None else {"action_mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.resets, self.time = self.resets + 1, 0
        return self._answer()

    def step(self, action):
        self.time += 1
        over = self.time == len(self.masks) - 1
        seen, info = self._answer()
        return seen, 1.0, over and self.ends == "terminated", over and self.ends == "truncated", info


MASKS = [np.array([1, 0, 1], np.int8), np.array([0, 1, 0], np.int8), np.array([1, 1, 1], np.int8)]


@pytest.mark.parametrize("key", [False, True])
@pytest.mark.parametrize("last", [[0, 0, 0], None])
def test_states_hold_the_masks(key, last):
    """Of the terminal state none is needed, and one that allows nothing is no fault."""
    if key and last is None:
        last = [0, 0, 0]
    envs = Environments.make(lambda: Gates([*MASKS, last], key=key), num_envs=2, masks="look")
    masks = lambda states: states[:, envs.masks.columns].tolist()  # noqa: E731
    assert masks(envs.reset()) == [[1, 0, 1]] * 2
    assert envs.mask_size == (None if key else 3)
    step = envs.step(np.array([0, 2]))
    assert masks(step.next_state) == [[0, 1, 0]] * 2
    assert envs.state_space.layout.mask.columns == envs.masks.columns
    envs.step(np.array([1, 1]))
    step = envs.step(np.array([1, 1]))
    assert step.terminated.all()
    assert masks(step.next_state) == [[1, 1, 1]] * 2
    assert masks(step.state) == [[1, 0, 1]] * 2
    assert sorted(np.delete(step.next_state[0], range(3)[envs.masks.columns]).tolist()) == [3.0]  # counted from 0


def test_the_reset_that_looks_is_the_first():
    """Nobody resets twice, and what is given first is what the looking saw; environments without masks stay as are."""
    made = []

    def make(masks=MASKS):
        made.append(Gates(masks))
        return made[-1]

    envs = Environments.make(make, num_envs=2, masks="look")
    envs.reset()
    assert [env.resets for env in made] == [1, 1]
    made.clear()
    plain = Environments.make(lambda: make([None] * 4), masks="look")
    assert plain.reset().tolist() == [0]
    assert plain.state_space == Discrete(9)
    assert plain.masks is None
    assert [env.resets for env in made] == [1]
    assert plain.reset().tolist() == [0]
    assert [env.resets for env in made] == [2]


def test_looking_leaves_running_statistics_as_they_were():
    """A wrapper that counts what it sees has seen one observation after the first reset, as without looking."""
    make = lambda: NormalizeObservation(Gates([None] * 4, seen=Box(-9, 9, (1,))))  # noqa: E731
    looked, not_looked = (Environments.make(make, masks=masks) for masks in ("look", None))
    np.testing.assert_array_equal(looked.reset(), not_looked.reset())
    assert looked.statistics() == not_looked.statistics()


def test_a_run_with_masks_goes_on_from_a_snapshot():
    one = Environments.make(lambda: Gates(MASKS), masks="look")
    one.reset()
    one.step(np.array([0]))
    other = Environments.make(lambda: Gates(MASKS), masks=3)
    assert other.restore(one.snapshot())
    for left, right in zip(one.step(np.array([1])), other.step(np.array([1])), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_environments_give_masks_too(mode):
    """In all ways to reset; a final observation has the mask of the final information."""
    vector = SyncVectorEnv([lambda: Gates(MASKS, ends="truncated")] * 2, autoreset_mode=mode)
    envs = Environments.make(vector, masks="look")
    masks = lambda states: states[:, envs.masks.columns].tolist()  # noqa: E731
    assert masks(envs.reset()) == [[1, 0, 1]] * 2
    envs.step(np.array([0, 0]))
    step = envs.step(np.array([1, 1]))
    assert step.truncated.all()
    assert masks(step.next_state) == [[1, 1, 1]] * 2
    if mode is AutoresetMode.NEXT_STEP:
        step = envs.step(np.array([0, 0]))
        assert not step.valid.any()
    assert masks(step.state) == [[1, 0, 1]] * 2


def test_a_reset_of_one_environment_leaves_the_others_masks():
    """Episodes of different lengths, which the environments of a vector begin anew one by one."""
    makes = [lambda: Gates(MASKS, ends="truncated"), lambda: Gates([*MASKS, [0, 0, 1], *MASKS], ends="truncated")]
    envs = Environments.make(SyncVectorEnv(makes, autoreset_mode=AutoresetMode.DISABLED), masks="look")
    envs.reset()
    envs.step(np.array([0, 0]))
    step = envs.step(np.array([1, 1]))
    assert step.truncated.tolist() == [True, False]
    assert step.state[:, envs.masks.columns].tolist() == [[1, 0, 1], [1, 1, 1]]
    step = envs.step(np.array([0, 0]))
    assert step.state[:, envs.masks.columns].tolist() == [[0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("mask", "space", "wanted"),
    [
        (np.array([True, False, True]), Discrete(3), [1, 0, 1]),
        ([1, 0, 1], Discrete(3, start=4), [1, 0, 1]),
        (np.array([1, 0, 1, 0, 1]), PAIR, [1, 0, 1, 0, 1]),  # as sb3-contrib's MaskablePPO has it
        (([1, 0, 1], [0, 1]), PAIR, [1, 0, 1, 0, 1]),  # as MultiDiscrete.sample() takes it
        (np.eye(3, 2), PAIR, [1, 0, 0, 1, 0, 0]),  # joint actions
        (np.array([1, 0, 2, 2]), MultiBinary(4), [0, 1, 1, 0, 1, 1, 1, 1]),  # as MultiBinary.sample() takes it
        (np.ones(8), MultiBinary(4), [1] * 8),
        ((((1, 0), (1, 1)), ((0, 1), (1, 0))), MultiDiscrete([[2, 2], [2, 2]]), [1, 0, 1, 1, 0, 1, 1, 0]),
        (np.ones((7, 5), bool), PAIR, [[1] * 5] * 7),
    ],
)
def test_masks_in_every_form(mask, space, wanted):
    assert flat_mask(mask, space).tolist() == wanted


def reset(mask, space=None, **options):
    envs = Environments.make(lambda: Gates([mask, *MASKS], space, **options), masks="look")
    return envs.reset()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda: reset(np.zeros(3)),
            r"gave an action_mask at a reset after 0 steps that forbids every action, \[0, 0, 0",
        ),
        (lambda: reset(np.zeros(3), key=True), r"gave an action_mask at a reset .* forbids every action"),
        (lambda: reset(np.array([1, 2, 0])), r"has the values \[0.0, 1.0, 2.0\], and must have 1 for what is allowed"),
        (lambda: reset(np.ones(4)), r"action_mask has shape \(4,\), and Discrete\(3\) has 3 actions; give one number"),
        (
            lambda: reset(np.ones(4), PAIR),
            r"has factors of \(3, 2\) values; give 5 numbers.*or one for each of 6 joint",
        ),
        (lambda: reset(np.array([1, 0, 0, 0, 0]), PAIR), r"forbids every action of factor 1"),
        (lambda: reset("all"), "action_mask must be an array of 0 and 1, or of bool, got 'all'"),
        (lambda: reset(np.ones((2, 2)), MultiDiscrete([2, 2])), r"could be taken for theirs; make the .*Discrete\(4\)"),
        (lambda: reset(np.ones(3), Discrete(4), key=True), r"has length 3, and Discrete\(4\) has 4 actions"),
        (lambda: reset(np.ones(3), Box(-1, 1, (2,)), key=True), "its actions are continuous; leave it out"),
    ],
)
def test_bad_masks_are_told(run, message):
    with pytest.raises(ValueError, match=message):
        run()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([MASKS[0], np.zeros(3), *MASKS], r"gave an action_mask at step 1 that forbids every action"),
        ([MASKS[0], None, *MASKS], r"gave no info\['action_mask'\] in step 1 of an episode, and did before"),
        (
            [MASKS[0], np.ones(2), *MASKS],
            r"wrong info\['action_mask'\] in step 1 .* shape \(2,\), and Discrete\(3\) has 3",
        ),
        ([MASKS[0], np.zeros(3)], r"at step 1 that forbids every action"),
    ],
)
def test_masks_that_go_wrong_later_are_told_with_the_step(masks, message):
    """A state that an episode is cut off in is no terminal one: something must be allowed there."""
    envs = Environments.make(lambda: Gates(masks, ends="truncated"), masks="look")
    envs.reset()
    with pytest.raises(StepError, match=message) as told:
        envs.step(np.array([0]))
    assert told.value.step == 1
    assert told.value.field == "action_mask"
