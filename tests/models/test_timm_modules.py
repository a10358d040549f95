"""One network of every module of timm: it loads, and has a feature level unless a reason is known.

pytest tests/models/test_timm_modules.py -m slow       # all of them, some minutes
"""

from __future__ import annotations

import pytest
import timm
import torch

from models.libraries import describe
from models.splitting import TIMM_SPLITS, NoFeatureLevel, first_split, probe

SMALL = {  # module -> its smallest network, or one of its small ones
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41",
    "xcit": "xcit_nano_12_p16_224",
}
SHALLOWER = {"deepseek_vit": {"depth": 2}, "gemma4_vit": {"depth": 2}}  # modules whose smallest network is too large
ABSENT = {
    "volo": "differs from the network's own logits",  # adds what its tokens say to what the class token says
}
WITHOUT_CLASSIFIER = 10  # classes, where timm ships a network without any
LARGEST = 150_000_000  # parameters
QUICK = ("vision_transformer", "levit", "crossvit", "efficientvim", "mambaout", "resnet", "mobilenetv3")


def test_the_table_has_every_module_of_timm() -> None:
    assert set(timm.list_modules()) == set(SMALL)


def split_of(module: str) -> tuple[torch.Tensor, torch.Tensor] | str:
    """(features, logits) of the probe, or why there is no feature level."""
    name, kwargs = SMALL[module], SHALLOWER.get(module, {})
    with torch.device("meta"):
        assert sum(one.numel() for one in timm.create_model(name, **kwargs).parameters()) < LARGEST
    torch.manual_seed(0)
    net = timm.create_model(name, **kwargs)
    if not net.num_classes:
        net = timm.create_model(name, num_classes=WITHOUT_CLASSIFIER, **kwargs)
    side = net.pretrained_cfg["input_size"][-1]
    with torch.inference_mode():
        x, logits = probe(net.eval(), side)
        try:
            split, features = first_split(net, x, logits, TIMM_SPLITS)
        except NoFeatureLevel as absent:
            return str(absent)
        # The head is all that is left: one row of features gives that row of logits.
        torch.testing.assert_close(split.head(features[:1]), logits[:1], rtol=1e-3, atol=1e-4)
    return features, logits


@pytest.mark.parametrize("module", QUICK)
def test_a_network_has_its_feature_level(module: str) -> None:
    found = split_of(module)
    assert not isinstance(found, str), found
    assert found[0].ndim == 2


@pytest.mark.slow
@pytest.mark.parametrize("module", SMALL)
def test_a_network_of_every_module_loads_and_is_split(module: str) -> None:
    found = split_of(module)
    if module in ABSENT:
        assert isinstance(found, str) and ABSENT[module] in found
    else:
        assert not isinstance(found, str), found


@pytest.mark.parametrize("module", SMALL)
def test_a_network_of_every_module_is_described(module: str) -> None:
    shipped = describe(SMALL[module])
    assert shipped.name.partition(".")[0] == SMALL[module]
    assert shipped.spec.K == (shipped.config.test_input_size or shipped.config.input_size)[-1] <= shipped.spec.S
