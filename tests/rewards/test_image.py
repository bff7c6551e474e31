from io import BytesIO

import pytest
import torch
import torch.nn as nn
from PIL import Image

from difftilt.conditions import unconditional
from difftilt.guard import Guard
from difftilt.rewards.image import class_log_prob, ink, jpeg_bytes, pictures, png_bytes, symmetry

COND = unconditional(4)


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)


def images(channels: int = 1) -> torch.Tensor:
    return torch.rand(4, channels, 8, 8, generator=torch.Generator().manual_seed(0))


def test_class_probabilities_sum_to_one(classifier):
    total = sum(class_log_prob(classifier, y)(images(), COND).exp() for y in range(10))
    torch.testing.assert_close(total, torch.ones(4))


def test_the_target_can_be_read_from_the_condition(classifier):
    labels = torch.tensor([3, 0, 9, 3])
    from_cond = class_log_prob(classifier, "label")(images(), {"label": labels})
    fixed = [class_log_prob(classifier, int(y))(images(), COND)[i] for i, y in enumerate(labels)]
    torch.testing.assert_close(from_cond, torch.stack(fixed))


@pytest.mark.parametrize("target", [-1, 10])
def test_an_unknown_class_is_refused(classifier, target):
    with pytest.raises(ValueError, match="target class"):
        class_log_prob(classifier, target)(images(), COND)


def test_a_missing_condition_is_refused(classifier):
    with pytest.raises(ValueError, match=r"cond\['digit'\]"):
        class_log_prob(classifier, "digit")(images(), COND)


@pytest.mark.parametrize("name", ["class", "ink", "symmetry"])
def test_differentiable_rewards_have_the_gradient_of_finite_differences(classifier, name):
    rewards = {"class": class_log_prob(classifier.double(), 3), "ink": ink, "symmetry": symmetry}
    x = images().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rewards[name](x, COND), x)


def test_ink_is_a_share():
    assert ink(torch.zeros(1, 1, 8, 8), COND).item() == 0
    assert ink(torch.ones(1, 3, 4, 6), COND).item() == 1
    assert ink(torch.full((1, 1, 8, 8), 0.5), COND).item() == 0.5


def test_symmetry_is_highest_for_mirrored_images():
    x = images()
    mirrored = torch.cat([x[..., :4], x[..., :4].flip(-1)], -1)
    assert (symmetry(mirrored, COND) == 0).all()
    assert (symmetry(x, COND) < 0).all()
    top_bottom = torch.cat([x[..., :4, :], x[..., :4, :].flip(-2)], -2)
    assert (symmetry(top_bottom, COND) < 0).all()
    black_and_white = torch.ones(1, 1, 8, 8)
    black_and_white[..., :4] = 0
    assert symmetry(black_and_white, COND).item() == -4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [png_bytes, jpeg_bytes])
def test_files_of_noise_are_larger_than_those_of_paper(size, channels):
    noise, paper = images(channels), torch.zeros(4, channels, 8, 8)
    assert (size(noise, COND) < size(paper, COND)).all()
    assert (size(paper, COND) < 0).all()


def test_the_size_is_that_of_the_file_in_kilobytes():
    x = images()
    buffer = BytesIO()
    pictures(x, 8)[2].save(buffer, format="JPEG", quality=95)
    assert jpeg_bytes(x, COND)[2].item() == pytest.approx(-len(buffer.getvalue()) / 1000)
    assert (jpeg_bytes(x, COND, quality=50) > jpeg_bytes(x, COND)).all()
    assert (png_bytes(x, COND, upscale=32) < png_bytes(x, COND)).all()


def test_png_is_lossless_up_to_eight_bits():
    x, buffer = images(3), BytesIO()
    pictures(x)[0].save(buffer, format="PNG")
    back = torch.tensor(list(Image.open(buffer).tobytes())).view(8, 8, 3).permute(2, 0, 1)
    assert (2 * (back / 255 - x[0])).abs().max() <= 0.5 / 127.5 + 1e-6


def test_pictures_enlarge_each_pixel_to_a_square():
    picture = pictures(torch.tensor([[[[0.0, 1.0], [1.0019, -0.0019]]]]), 2)[0]
    rows = torch.tensor(list(picture.tobytes())).view(4, 4)
    assert rows.tolist() == [[0, 0, 255, 255]] * 2 + [[255, 255, 0, 0]] * 2


def test_black_is_black():
    black = torch.zeros(1, 3, 8, 8)
    assert pictures(black)[0].getpixel((0, 0)) == (0, 0, 0)
    assert pictures(1 - black)[0].getpixel((0, 0)) == (255, 255, 255)


PIXEL_REWARDS = [ink, symmetry, png_bytes, jpeg_bytes]


@pytest.mark.parametrize("reward", PIXEL_REWARDS)
@pytest.mark.parametrize("scale", ["from -1", "to 255", "a single value", "no number"])
def test_images_of_another_range_are_refused(reward, scale):
    x = {"from -1": 2 * images() - 1, "to 255": 255 * images()}.get(scale, images())
    if scale in ("a single value", "no number"):
        x[2, 0, 3, 3] = 1.002 if scale == "a single value" else torch.nan
    with pytest.raises(ValueError, match=r"values in \[0, 1\], but got [-0-9.na]+ to .*; map them"):
        reward(x, COND)


@pytest.mark.parametrize("reward", PIXEL_REWARDS)
def test_rounding_beyond_the_range_is_no_fault(reward):
    x = images()
    x[0, 0, 0] = torch.linspace(-0.0019, 1.0019, 8)
    torch.testing.assert_close(reward(x, COND), reward(x.clamp(0, 1), COND), rtol=0, atol=1e-3)


def test_an_empty_batch_is_within_the_range():
    assert ink(torch.zeros(0, 1, 8, 8), unconditional(0)).shape == (0,)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 2, 8, 8)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match="image batch"):
        png_bytes(torch.zeros(shape), COND)


def test_black_box_rewards_pass_the_guard_and_carry_no_gradient():
    x = images().requires_grad_()
    answer = Guard(png_bytes)(x, COND)
    assert not answer.requires_grad
    assert answer.isfinite().all()
