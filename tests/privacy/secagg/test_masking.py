import numpy as np
import pytest

from umbel.privacy.secagg.masking import BLOCK_BYTES, apply_masks, keystream

SEED = bytes(range(1, 33))
SIZES = (0, 1, 5, BLOCK_BYTES // 4, BLOCK_BYTES // 4 + 3, 3 * BLOCK_BYTES // 4 + 1)


def random(size, dtype="<u4"):
    return np.random.default_rng(3).integers(0, 2**32, size, np.uint64).astype(dtype)


def test_the_stream_is_aes_ctr():
    # RFC 3686, test vector 1, and NIST SP 800-38A, F.5.1 (its keystream: "output block", first two).
    rfc = bytes.fromhex("AE6852F8121067CC4BF7A5765577F39E" + "00000030000000000000000000000001")
    assert keystream(rfc, 16) == bytes.fromhex("B7603328DBC2931B410E16C8067E62DF")
    nist = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c" + "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    blocks = bytes.fromhex("ec8cdf7398607cb0f2d21675ea9ea1e4" + "362b7c3c6773516318a077d7fc5073ae")
    assert keystream(nist, 32) == blocks


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
@pytest.mark.parametrize("size", SIZES)
def test_fused_equals_plain(size, dtype):
    values = random(size, dtype)
    expected = values + np.frombuffer(keystream(SEED, values.nbytes), dtype)
    apply_masks(values, [SEED])
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
def test_what_is_added_and_subtracted_cancels(dtype):
    values = random(BLOCK_BYTES // 4 + 7, dtype)
    before, seeds = values.copy(), [one.to_bytes(2) * 16 for one in range(300)]  # more than are open at a time
    apply_masks(values, seeds)
    assert np.count_nonzero(values == before) < 10
    apply_masks(values, subtracted=seeds[::-1])
    np.testing.assert_array_equal(values, before)


def test_every_bit_of_the_seed_changes_the_mask():
    masks = {keystream(SEED, 64)}
    for bit in range(256):
        flipped = (int.from_bytes(SEED, "big") ^ 1 << bit).to_bytes(32, "big")
        masks.add(keystream(flipped, 64))
    assert len(masks) == 257


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_seeds_of_another_size_are_refused(size):
    with pytest.raises(ValueError, match="seed of 32 bytes"):
        apply_masks(random(4), [bytes(size)])
