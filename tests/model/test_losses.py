"""The chunked loss against PyTorch's cross-entropy on full logits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from horovod_transformer.model import chunk_size, losses
from horovod_transformer.model.chunk_size import padded_columns
from horovod_transformer.model.cpu import head_products
from horovod_transformer.model.cpu.cross_entropy import works_in_place
from horovod_transformer.model.losses import chunked_cross_entropy


@pytest.fixture(
    autouse=True,
    params=[(True, 64, False), (True, 10, False), (True, 64, True), (False, 64, False), (None, 64, False)],
    ids=["in place", "no room left", "by oneDNN", "as on a GPU", "as for the compiler"],
)
def small_chunks(monkeypatch, request):
    """Several chunks and a last one that is not full, at test size; in one memory and not."""
    in_place, multiple, by_onednn = request.param
    monkeypatch.setattr(chunk_size, "CHUNK_ROWS", 8)
    monkeypatch.setattr(head_products, "HALF_COLUMNS", 300)
    monkeypatch.setattr(head_products, "ONEDNN_COLUMNS", 20)
    monkeypatch.setattr(head_products, "mkl_lacks_avx512", lambda: by_onednn)
    monkeypatch.setattr(chunk_size, "COLUMNS_MULTIPLE", multiple)
    monkeypatch.setattr(losses, "works_in_place", lambda device, compiled: bool(in_place))
    if in_place is None:
        monkeypatch.setattr(losses, "_loss_and_grad", losses._loss_and_grad_to_fuse)
    return multiple


def example(rows: int = 30, ignored: float = 0.3, width: int = 12, vocabulary: int = 50):
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    labels = torch.randint(0, vocabulary, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < ignored] = -100
    return hidden, weight, labels


def full(hidden, weight, labels):
    return F.cross_entropy(hidden @ weight.T, labels, ignore_index=-100, reduction="sum")


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 30])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
def test_loss_and_gradients_equal_full_logits(rows, ignored):
    hidden, weight, labels = example(rows, ignored)
    loss, count, correct = chunked_cross_entropy(hidden, weight, labels)
    expected = full(hidden, weight, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert count == (labels != -100).sum()
    assert correct == ((hidden @ weight.T).argmax(1) == labels).sum()

    # Any factor may come from above, as from accumulation or a loss scale.
    gradients = torch.autograd.grad(loss * 0.37, [hidden, weight])
    references = torch.autograd.grad(expected * 0.37, [hidden, weight])
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-6), (torch.bfloat16, 2e-2)])
def test_close_to_float64(dtype, tolerance):
    hidden, weight, labels = example(64, width=32, vocabulary=1001)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss, _, correct = chunked_cross_entropy(hidden, weight, labels)
    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    exact = full(exact_hidden, exact_weight, labels)
    assert loss.item() == pytest.approx(exact.item(), rel=tolerance)
    right = ((exact_hidden @ exact_weight.T).argmax(1) == labels).sum().item()
    assert abs(correct.item() - right) <= (0 if dtype is None else 2)
    references = torch.autograd.grad(exact, [exact_hidden, exact_weight])
    for gradient, reference in zip(torch.autograd.grad(loss, [hidden, weight]), references, strict=True):
        assert gradient.shape == reference.shape
        assert (gradient - reference).norm() / reference.norm() < tolerance


@pytest.mark.parametrize("held_back", [True, False])
def test_onednn_does_the_products_where_mkl_is_held_back(monkeypatch, held_back):
    monkeypatch.setattr(losses, "works_in_place", lambda device, compiled: True)
    monkeypatch.setattr(head_products, "mkl_lacks_avx512", lambda: held_back)
    calls, product = [], head_products.onednn_product
    monkeypatch.setattr(head_products, "onednn_product", lambda *args: calls.append(1) or product(*args))
    hidden, weight, labels = example(rows=8, vocabulary=50)
    chunked_cross_entropy(hidden, weight, labels)
    # Logits and two gradients, each in three pieces of at most 20 columns.
    assert len(calls) == (9 if held_back else 0)


@pytest.mark.parametrize(("gib", "rows"), [(79, 8192), (40, 4096), (16, 1536), (2, 512)])
def test_rows_by_the_memory_of_a_card(monkeypatch, gib, rows):
    card = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(chunk_size, "CHUNK_ROWS", 512)
    assert chunk_size.rows_per_chunk(torch.device("cuda", 0), 50304) == rows
    assert chunk_size.rows_per_chunk(torch.device("cpu"), 50304) == 512


def test_rows_have_room_to_begin_at_round_addresses(monkeypatch):
    monkeypatch.setattr(chunk_size, "COLUMNS_MULTIPLE", 64)
    assert padded_columns(50257) == padded_columns(50304) == 50304


def test_what_works_in_place():
    assert works_in_place(torch.device("cpu"), compiled=False)
    assert not works_in_place(torch.device("cpu"), compiled=True)
    assert not works_in_place(torch.device("cuda", 0), compiled=False)


@pytest.mark.parametrize("columns", [5, 64, 2048, 50304])
def test_softmax_may_write_where_it_reads(columns):
    """torch promises nothing of it."""
    logits = torch.randn(9, columns) * 5
    logits[:, 3:7] = -torch.inf
    expected = logits.softmax(1)
    torch.softmax(logits, 1, out=logits)
    assert logits.equal(expected)


def test_all_chunks_of_logits_use_the_same_memory(small_chunks, monkeypatch):
    """A new piece of 100 MB costs page faults each time."""
    if not losses.works_in_place(torch.device("cpu"), False):
        pytest.skip("a GPU keeps its blocks by itself")
    made = []
    room = losses.LogitsInPlace
    monkeypatch.setattr(losses, "LogitsInPlace", lambda *arguments: made.append(room(*arguments)) or made[-1])
    hidden, weight, labels = example(30)
    loss, _, _ = chunked_cross_entropy(hidden, weight, labels)
    assert len(made) == 1
    with torch.no_grad():
        grads = [
            made[0].loss_and_grad(part, label, torch.ones(3).bool(), None, True)[2]
            for part, label in zip(hidden.split(3), labels.clamp(min=0)[:, None].split(3), strict=True)
        ]
    assert len({grad.data_ptr() for grad in grads}) == 1


def test_large_logits_do_not_overflow():
    hidden, weight, labels = example(20)
    loss, _, _ = chunked_cross_entropy(hidden * 1000, weight, labels)
    torch.testing.assert_close(loss, full(hidden * 1000, weight, labels))


def test_nothing_counts():
    hidden, weight, labels = example(20, ignored=1.0)
    loss, count, correct = chunked_cross_entropy(hidden, weight, labels)
    assert (loss.item(), count.item(), correct.item()) == (0, 0, 0)
    loss.backward()
    assert hidden.grad.eq(0).all() and weight.grad.eq(0).all()


def test_without_gradients_the_same_numbers(monkeypatch):
    hidden, weight, labels = example()
    with_gradient = chunked_cross_entropy(hidden, weight, labels)
    made = []
    monkeypatch.setattr(torch, "empty_like", lambda *_a, **_k: made.append(1))
    with torch.no_grad():
        without = chunked_cross_entropy(hidden, weight, labels)
    assert [x.item() for x in with_gradient] == [x.item() for x in without]
    assert not without[0].requires_grad
    assert not made  # no gradient is computed where none is wanted


def test_bf16_autocast_is_close_and_sums_in_float32():
    hidden, weight, labels = example(64, width=32, vocabulary=80)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, _ = chunked_cross_entropy(hidden, weight, labels)
    gradients = torch.autograd.grad(loss, [hidden, weight])
    expected = full(hidden, weight, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected, [hidden, weight]), strict=True):
        assert gradient.dtype == torch.float32
        difference = (gradient - reference).norm() / reference.norm()
        assert difference < 2e-2


def test_a_tie_is_right_only_for_the_token_that_argmax_takes():
    hidden = torch.ones(4, 1)
    weight = torch.tensor([[0.0], [2.0], [2.0], [1.0]])
    _, count, correct = chunked_cross_entropy(hidden, weight, torch.tensor([1, 2, 3, -100]))
    assert (count.item(), correct.item()) == (3, 1)
    # bf16 has so few digits that ties are common.
    hidden, weight, labels = (x.detach() for x in example(400, width=4, vocabulary=200))
    with torch.autocast("cpu", torch.bfloat16):
        logits = F.linear(hidden, weight)
        _, _, correct = chunked_cross_entropy(hidden, weight, labels)
        largest = logits.amax(1, keepdim=True)
    assert ((logits == largest).sum(1) > 1).any()
    assert correct == (logits.argmax(1) == labels).sum()


def test_the_gradient_reaches_what_lies_below():
    hidden, weight, labels = example()
    scale = torch.ones((), requires_grad=True)
    chunked_cross_entropy(hidden * scale, weight, labels)[0].backward()
    gradient, scale.grad = scale.grad, None
    full(hidden * scale, weight, labels).backward()
    torch.testing.assert_close(gradient, scale.grad, rtol=1e-4, atol=1e-4)


def test_only_one_chunk_of_logits_is_alive(small_chunks):
    columns = 50 if small_chunks == 10 else 64
    biggest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            nonlocal biggest
            result = function(*arguments, **(keywords or {}))
            if isinstance(result, torch.Tensor) and result.dim() == 2 and result.shape[1] == columns:
                biggest = max(biggest, result.shape[0])
            return result

    hidden, weight, labels = example(100, width=7)
    with Watch():
        loss, _, _ = chunked_cross_entropy(hidden, weight, labels)
        loss.backward()
    assert biggest == 8


def test_the_gradient_in_fp16_is_formed_with_the_scale():
    """The unscaled gradient of a large vocabulary, in fp16, loses most of its small entries."""
    torch.manual_seed(0)
    hidden = (torch.randn(64, 32) * 0.02).requires_grad_()
    weight = (torch.randn(20_000, 32) * 0.02).requires_grad_()
    labels = torch.randint(0, 20_000, (64,))
    scale, tokens = 2.0**16, 64
    exact = torch.autograd.grad(
        torch.nn.functional.cross_entropy(hidden.double() @ weight.double().t(), labels, reduction="sum")
        / tokens,
        weight,
    )[0]
    errors = {}
    for ahead in (1.0, scale / tokens):
        with torch.autocast("cpu", dtype=torch.float16):
            loss, _, _ = chunked_cross_entropy(hidden, weight, labels, ahead)
        (gradient,) = torch.autograd.grad(loss * (scale / tokens), weight)
        errors[ahead] = float((gradient / scale - exact).norm() / exact.norm())
        # Columns that no label names have the small gradients.
        others = torch.ones(20_000, dtype=torch.bool)
        others[labels] = False
        errors[ahead, "small"] = float((gradient / scale - exact)[others].norm() / exact[others].norm())
    assert errors[scale / tokens] < 0.01
    assert errors[scale / tokens, "small"] < 0.01
    assert errors[1.0, "small"] > 3 * errors[scale / tokens, "small"]


def test_a_second_backward_pass_is_refused():
    # The first one scales the gradients where they lie: a second would scale them again.
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    loss = chunked_cross_entropy(hidden, weight, torch.arange(5))[0] / 5
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
