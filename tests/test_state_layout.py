"""How observations in parts lie in a row: the way in, the ways out, and what does not fit."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Text, Tuple
from gymnasium.vector.utils import batch_space

from rl_as_inference.state_layout import LaidOut, PartError, StateLayout, channels_of, layout_of

SPACE = Dict(
    {
        "arm": Tuple((Box(-2.0, 2.0, (2, 2), np.float64), Discrete(3, start=-1))),
        "camera": Box(0, 255, (4, 5, 3), np.uint8),
        "dials": MultiDiscrete([2, 3], start=[0, 5]),
        "lights": MultiBinary(2),
        "action_mask": MultiBinary(4),
    }
)
LAYOUT = StateLayout(SPACE)


def test_every_part_comes_back_from_the_row():
    SPACE.seed(0)
    for _ in range(20):
        seen = SPACE.sample()
        row = torch.from_numpy(LAYOUT.flatten(seen))
        assert row.shape == (LAYOUT.size,)
        assert row.numpy() in LaidOut(LAYOUT)
        assert torch.equal(LAYOUT.part(row, "arm.0"), torch.from_numpy(seen["arm"][0].astype(np.float32)))
        assert int(LAYOUT.part(row, "arm.1")) == seen["arm"][1] + 1
        assert LAYOUT.part(row, "dials").tolist() == (seen["dials"] - [0, 5]).tolist()
        assert torch.equal(LAYOUT.part(row, "camera"), torch.from_numpy(seen["camera"]).float())
        assert LAYOUT.mask is not None
        assert row[LAYOUT.mask.columns].tolist() == seen["action_mask"].tolist()


def test_batches_as_gymnasium_makes_them_are_the_rows_one_by_one():
    batched = batch_space(SPACE, 3)
    batched.seed(1)
    seen = batched.sample()
    rows = LAYOUT.flatten(seen)
    for index in range(3):
        one = {key: value[index] for key, value in seen.items() if key != "arm"}
        one["arm"] = tuple(value[index] for value in seen["arm"])
        assert np.array_equal(rows[index], LAYOUT.flatten(one))


def test_networks_see_one_hot_integers_scaled_images_and_no_mask():
    SPACE.seed(2)
    seen = SPACE.sample()
    inputs = LAYOUT.inputs(torch.from_numpy(LAYOUT.flatten(seen)))
    hot = np.concatenate([np.eye(3)[seen["arm"][1] + 1], np.eye(2)[seen["dials"][0]], np.eye(3)[seen["dials"][1] - 5]])
    numbers = seen["arm"][0].ravel(), hot, seen["lights"], seen["camera"].ravel() / np.float32(255)
    assert inputs.shape == (LAYOUT.num_inputs,)
    torch.testing.assert_close(inputs, torch.from_numpy(np.concatenate(numbers).astype(np.float32)))
    changed = LAYOUT.flatten({**seen, "action_mask": 1 - seen["action_mask"]})
    assert torch.equal(LAYOUT.inputs(torch.from_numpy(changed)), inputs)


def test_a_mask_may_come_beside_the_observation():
    layout = StateLayout(Box(-1, 1, (2,)), mask=3)
    assert layout.flatten(np.array([0.5, -0.5]), np.array([1, 0, 1])).tolist() == [0.5, -0.5, 1, 0, 1]
    assert layout.mask is not None
    assert layout.num_inputs == 2


def test_only_images_and_parts_have_a_layout():
    assert layout_of(Box(0, 255, (84,), np.uint8)) is None
    assert layout_of(Discrete(3)) is None
    image = layout_of(Box(0, 255, (4, 84, 84), np.uint8))
    assert image is not None
    assert image.images[0].channels == "first"
    assert image.num_numbers == 0
    assert [channels_of(shape) for shape in ((3, 3, 3), (10, 10), (4, 9, 9), (1, 9, 1))] == [
        "last",
        None,
        "first",
        "last",
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lights": np.array([1, 0, 1])}, "part 'lights' of shape \\(3,\\)"),
        ({"dials": np.array([1, 8])}, "part 'dials' that is \\[1 8\\], outside MultiDiscrete"),
        ({"dials": np.array([0.5, 6.0])}, "part 'dials' that is of float64"),
        ({"camera": np.full((4, 5, 3), 300)}, "part 'camera' that is of int64, and its space is of bytes"),
        ({"arm": (np.zeros((2, 2)),)}, "lacks part 'arm.1'"),
        ({"lights": np.array(["a", "b"])}, "part 'lights' that is of <U1"),
    ],
)
def test_what_does_not_fit_is_said_with_the_part(changed, said):
    SPACE.seed(3)
    with pytest.raises(PartError, match=said):
        LAYOUT.flatten({**SPACE.sample(), **changed})


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (Dict({"camera": Box(0.0, 255.0, (10, 10, 3))}), "'camera' of float32 from 0 to 255.*np.uint8.*divide by 255"),
        (Dict({"words": Text(4)}), "part 'words' of Text.*TransformObservation"),
        (Tuple((Graph(Box(0, 1, (1,)), None),)), "part '0' of Graph"),
        (Dict({"action_mask": Discrete(3)}), "'action_mask' of Discrete\\(3\\)"),
        (Dict({}), "anything to see"),
    ],
)
def test_spaces_that_are_not_supported_are_refused(space, said):
    with pytest.raises(ValueError, match=said):
        StateLayout(space)
