"""Networks by name: one protocol for ours and timm's, no downloads, and errors that name the nearest."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from models.errors import ModelError
from models.networks.astroformer import VARIANTS, Astroformer, weight_decay_groups
from models.networks.factory import (
    Peer,
    check_variant,
    create_network,
    default_image_size,
    import_timm,
    recorded_layout,
)

SMALL_PEERS = ("timm/test_resnet", "timm/starnet_s050", "timm/mobilenetv3_small_050", "timm/convnext_zepto_rms")
PEERS = (*SMALL_PEERS, "timm/regnety_002", "timm/resnet50", "timm/convnext_nano", "timm/coatnet_0_rw_224")


@pytest.mark.parametrize("variant", ["cpu_tiny", *PEERS])
def test_every_network_gives_features_and_logits(variant: str) -> None:
    network = create_network(variant, image_size=64, num_classes=7).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        features, logits = network.penultimate(images), network(images)
        assert (network.num_classes, network.image_size) == (7, 64)
        assert features.ndim == 2 and logits.shape == (2, 7) and logits.isfinite().all()
        assert torch.equal(network.classify(features), logits)
        if isinstance(network, Peer):
            assert torch.equal(network.body(images), logits)


@pytest.mark.parametrize("variant", SMALL_PEERS)
def test_every_parameter_of_a_peer_learns(variant: str) -> None:
    network = create_network(variant, image_size=64, num_classes=4, drop_path=0.1, head_dropout=0.1)
    nn.functional.cross_entropy(network(torch.randn(8, 3, 64, 64)), torch.arange(8) % 4).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    torch.optim.AdamW(weight_decay_groups(network, 0.05)).step()


def test_first_weights_follow_the_seed() -> None:
    networks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        networks.append(create_network("timm/test_resnet", image_size=64, num_classes=4).state_dict())
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
    assert not torch.equal(networks[0]["body.fc.weight"], networks[2]["body.fc.weight"])


def test_rates_reach_the_peer_that_knows_them(caplog: pytest.LogCaptureFixture) -> None:
    network = create_network("timm/convnext_zepto_rms", image_size=64, num_classes=4, drop_path=0.3, head_dropout=0.2)
    rates = [m.drop_prob for m in network.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3) and network.body.drop_rate == 0.2  # type: ignore[union-attr]
    assert caplog.text == ""
    create_network("timm/ghostnet_050", image_size=64, num_classes=4, drop_path=0.3)
    assert "timm/ghostnet_050 knows no drop_path_rate" in caplog.text


def test_settings_reach_the_astroformer() -> None:
    network = create_network(
        "cpu_tiny", layout="CCTT", image_size=96, num_classes=3, drop_path=0.4, checkpoint_activations=True
    )
    assert isinstance(network, Astroformer) and network.layout == "CCTT"
    assert all(stage.checkpoint_activations for stage in network.stages)
    assert network.stages[3].blocks[0].drop_path.rate == pytest.approx(0.4)


def test_checkpointing_does_not_stop_a_peer(caplog: pytest.LogCaptureFixture) -> None:
    create_network("timm/test_resnet", image_size=64, num_classes=4, checkpoint_activations=True)
    assert "for Astroformer only" in caplog.text


def test_default_sizes_and_recorded_layouts() -> None:
    assert (default_image_size("cpu_tiny"), default_image_size("timm/resnet50")) == (64, 256)
    assert recorded_layout("cpu_tiny", "CCTT") == "CCTT"
    layout = recorded_layout("timm/test_resnet", "CCCT")
    create_network("timm/test_resnet", layout=layout, image_size=64, num_classes=4)  # as a card says it


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("astroformer0", r"did you mean 'astroformer_0'\?.*cpu_tiny, or timm/NAME"),
        ("resnet50", r"unknown network 'resnet50'"),
        ("timm/resnet_50", r"no model 'resnet_50'; did you mean timm/resnet50"),
        ("timm/resnet50.a1_in1k", r"names weights; peers are trained from scratch: use timm/resnet50$"),
        ("timm/hf-hub:timm/resnet50", r"has no model 'hf-hub:timm/resnet50'"),
        ("timm/", r"has no model ''"),
    ],
)
def test_unknown_names_say_the_nearest(variant: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_variant(variant)
    with pytest.raises(ModelError, match=message):
        create_network(variant, image_size=64, num_classes=4)


@pytest.mark.parametrize(
    ("variant", "settings", "message"),
    [
        ("timm/test_resnet", {"layout": "CCTT"}, "has no layout, found 'CCTT': leave the layout at CCCT"),
        ("timm/crossvit_tiny_240", {}, "does not end in one linear layer"),
        ("timm/maxvit_pico_rw_256", {"image_size": 40}, "timm/maxvit_pico_rw_256 cannot read images of 40 px"),
        ("cpu_tiny", {"image_size": 100}, "multiple of 32 px, found 100"),
        ("cpu_tiny", {"layout": "-"}, "four letters"),
    ],
)
def test_settings_that_do_not_fit_say_so(variant: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_network(variant, **{"image_size": 64, "num_classes": 4, **settings})  # type: ignore[arg-type]


def test_known_variants_pass() -> None:
    for variant in (*VARIANTS, "timm/resnet50"):
        check_variant(variant)


NO_TIMM = """
import sys
sys.modules["timm"] = None  # as Python marks what cannot be imported
from models.errors import ModelError
from models.networks.factory import create_network
create_network("cpu_tiny", image_size=64, num_classes=4)
try:
    create_network("timm/resnet50", image_size=64, num_classes=4)
except ModelError as error:
    print(error)
"""


@pytest.mark.slow
def test_without_timm_ours_work_and_peers_say_how_to_install_it() -> None:
    done = subprocess.run([sys.executable, "-c", NO_TIMM], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "peers need timm; there is no module 'timm' here: install it with pip install 'morphcat[peers]'\n"
    )


def test_timm_is_imported_only_for_peers() -> None:
    code = "import sys, models.networks.factory as n; n.check_variant('cpu_tiny'); print('timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_timm_comes_with_a_torchvision_that_imports() -> None:
    assert import_timm().is_model("resnet50")
    assert sys.modules["torchvision"].__version__
