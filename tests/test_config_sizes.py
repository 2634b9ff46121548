"""What the name of a VM size tells."""

from __future__ import annotations

import pytest

from joblib_azure.config import ClusterConfig
from joblib_azure.config.sizes import architecture_of, cores_of, has_gpu, known_sizes, nearest_size
from joblib_azure.errors import ConfigurationError


@pytest.mark.parametrize(
    ("size", "cores"),
    [
        # By the number in the name.
        ("Standard_F2", 2),
        ("standard_d16s_v5", 16),
        ("STANDARD_F72S_V2", 72),
        ("Standard_A8m_v2", 8),
        ("Standard_B20ms", 20),
        ("Standard_H16mr", 16),
        ("Standard_HB120rs_v3", 120),
        ("Standard_HC44rs", 44),
        ("Standard_M416ms_v2", 416),
        ("Standard_M832ids_16_v3", 832),
        ("Standard_NC24ads_A100_v4", 24),
        ("Standard_ND96isr_H100_v5", 96),
        ("Standard_NV36adms_A10_v5", 36),
        ("Standard_NC6", 6),
        ("Standard_DC8_v2", 8),
        ("Emulated_C3", 3),
        # Constrained: the vCPUs that are left.
        ("Standard_E16-8s_v5", 8),
        ("Standard_M8-2ms", 2),
        ("Standard_M64-32bds_1_v3", 32),
        ("Standard_DS11-1_v2", 1),
        ("Standard_DS14-8_v2", 8),
        ("Standard_GS5-16", 16),
        ("Standard_HB176-144rs_v4", 144),
        ("Standard_FX12-6mds_v2", 6),
        # The first series, whose numbers count the sizes.
        ("Basic_A0", 1),
        ("Basic_A3", 4),
        ("Basic_A4", 8),
        ("Standard_A0", 1),
        ("Standard_A1", 1),
        ("Standard_A4", 8),
        ("Standard_A5", 2),
        ("Standard_A7", 8),
        ("Standard_A9", 16),
        ("Standard_A11", 16),
        ("Standard_D1", 1),
        ("Standard_D4", 8),
        ("Standard_D14", 16),
        ("Standard_D3_v2", 4),
        ("Standard_D5_v2", 16),
        ("Standard_D15_v2", 20),
        ("Standard_D13_v2_Promo", 8),
        ("Standard_DS3_v2", 4),
        ("Standard_DS14", 16),
        ("Standard_G1", 2),
        ("Standard_G5", 32),
        ("Standard_GS4", 16),
        # Newer than the table: by the convention.
        ("Standard_D64ds_v9", 64),
        ("Standard_E96-24s_v8", 24),
        ("Standard_ND128isr_NDR_GB200_v6", 128),
    ],
)
def test_cores(size: str, cores: int) -> None:
    assert cores_of(size) == cores
    assert ClusterConfig.read({"name": "a", "vmSize": size}, "test").cores == cores


@pytest.mark.parametrize(
    ("size", "near"),
    [
        ("Standard_D4sv5", "Standard_D4s_v5"),
        ("Standard_D5s_v5", "Standard_D"),  # There is D4s and D8s, and none of 5.
        ("Standrd_F4s_v2", "Standard_F4s_v2"),
        ("D4s_v5", "Standard_D4s_v5"),
        ("Standard_E16-7s_v5", "Standard_E16"),
        ("Standard D4s v5", "Standard_D4s_v5"),
        ("Standard_Q4s_v5", "s_v5"),
    ],
)
def test_a_size_that_is_not_there_is_answered_with_the_nearest(size: str, near: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ClusterConfig.read({"name": "a", "vmSize": size}, "test")
    text = str(caught.value)
    assert f"vmSize = {size!r}" in text
    found = nearest_size(size)
    assert found is not None
    assert near in found
    assert f"did you mean {found!r}" in text


def test_the_way_out_is_to_give_the_cores() -> None:
    with pytest.raises(ConfigurationError, match="give the number of its cores as `cores`"):
        ClusterConfig.read({"name": "a", "vmSize": "Standard_Strange"}, "test")
    config = ClusterConfig.read({"name": "a", "vmSize": "Standard_Strange", "cores": 12}, "test")
    assert (config.cores, config.gpu, config.architecture) == (12, False, "x86_64")


def test_every_known_size_is_what_it_says() -> None:
    sizes = known_sizes()
    assert len(sizes) > 1300
    for size, cores in sizes.items():
        assert cores_of(size) == cores_of(size.lower()) == cores
        assert 1 <= cores <= 832


@pytest.mark.parametrize(
    ("size", "gpu", "architecture"),
    [
        ("Standard_D4s_v5", False, "x86_64"),
        ("Standard_D4ps_v5", False, "aarch64"),
        ("Standard_E8pds_v6", False, "aarch64"),
        ("Standard_B2pts_v2", False, "aarch64"),
        ("Standard_NP10s", False, "x86_64"),
        ("Standard_NC4as_T4_v3", True, "x86_64"),
        ("Standard_NCC40ads_H100_v5", True, "x86_64"),
        ("Standard_NV6", True, "x86_64"),
        ("Standard_NG8ads_V620_v1", True, "x86_64"),
        ("Standard_ND40rs_v2", True, "x86_64"),
        ("Standard_ND128isr_NDR_GB200_v6", True, "aarch64"),
        ("Emulated_C2", False, "x86_64"),
    ],
)
def test_gpus_and_processors(size: str, gpu: bool, architecture: str) -> None:
    assert (has_gpu(size), architecture_of(size)) == (gpu, architecture)
    config = ClusterConfig.read({"name": "a", "vmSize": size}, "test")
    assert (config.gpu, config.architecture) == (gpu, architecture)
