"""SAM's attention with its relative position bias: each form of it is the plain formula."""

import itertools

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from deepsynth_min.model.encoders import relative_attention as forms, sam_clip as encoder


@pytest.mark.parametrize("piece", (1, 1500, 4000, 2**24))  # a row, some rows, some pages, all
def test_the_bias_in_columns_and_in_pieces_of_a_mask_is_the_bias(monkeypatch, piece):
    monkeypatch.setattr(forms, "PIECE", piece)
    torch.manual_seed(0)
    n, H, h, w, d = 5, 2, 6, 4, 8
    q, k, v = torch.randn(n, h, w, 3, H, d).permute(3, 0, 4, 1, 2, 5)
    bias_h, bias_w = torch.randn(n, H, h, w, h), torch.randn(n, H, h, w, w)
    plain = forms.attention_with_bias(q, k, v, bias_h, bias_w)
    for form in (forms.attend_with_columns, forms.attend_in_pieces):
        torch.testing.assert_close(form(q, k, v, bias_h, bias_w), plain, atol=1e-5, rtol=1e-5)


def test_the_bias_of_two_patches_is_the_query_times_the_tables_rows_of_their_distances():
    torch.manual_seed(0)
    h, w, d = 3, 5, 8
    table_h, table_w = torch.randn(2 * h - 1, d), torch.randn(2 * w - 1, d)
    layer, q = encoder.SamAttention(d, 1, 7), torch.randn(1, h, w, d)
    layer.rel_pos_h.data, layer.rel_pos_w.data = table_h, table_w
    bias = forms.relative_position_bias(*layer.axis_biases(q[:, None]))[0, 0]  # [P, P]
    for (y, x), (row, column) in itertools.product(itertools.product(range(h), range(w)), repeat=2):
        by_distance = table_h[y - row + h - 1] + table_w[x - column + w - 1]
        torch.testing.assert_close(bias[y * w + x, row * w + column], q[0, y, x] @ by_distance)


def test_a_page_is_seen_alike_with_and_without_gradients():
    torch.manual_seed(0)
    layer = encoder.SamAttention(16, 2, 7)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(3, 7, 7, 16)
    with torch.no_grad():
        seen = layer(x)
    torch.testing.assert_close(layer(x), seen, atol=1e-5, rtol=1e-5)


@pytest.fixture
def kernel_as_python(monkeypatch):
    """flex_attention as it is, without a compiler."""
    monkeypatch.setattr(forms, "_kernel", lambda *_: flex_attention)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("h, w", ((7, 7), (5, 5), (4, 6)))  # as the table is, resized, not square
def test_the_bias_looked_up_for_each_score_is_the_bias(kernel_as_python, h, w):
    torch.manual_seed(0)
    layer = encoder.SamAttention(16, 2, 7).requires_grad_(False)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(3, h, w, 16)
    plain = layer(x)
    layer.by_score = True
    torch.testing.assert_close(layer(x), plain, atol=1e-5, rtol=1e-5)
