"""The model against its formulas: what each test computes by hand, the model must repeat."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from horovod_transformer.config import load_config
from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.model.layer import TransformerLayer
from horovod_transformer.model.transformer import (
    POSITION_SCALE,
    TransformerLM,
    build_model,
    sinusoidal_positions,
)
from tests.conftest import TINY, TINY_LLAMA

TOKENS = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(1))
PROMPTS = torch.randint(0, 300, (3, 5), generator=torch.Generator().manual_seed(2))


SHAPES = {"sinusoidal": TINY, "rotary": TINY.model_copy(update={"positions": "rotary"}), "llama": TINY_LLAMA}


@pytest.fixture(params=SHAPES)
def tiny_model(request):
    """A fresh model of 27 thousand parameters with each way of telling positions; learned ones are sinusoidal
    ones that learn."""
    torch.manual_seed(0)
    return build_model(SHAPES[request.param])


def test_the_default_model_has_the_documented_parameters():
    with torch.device("meta"):
        model = TransformerLM()
    d, v, layers, ff = 768, 50257, 12, 3072
    layer = 2 * 2 * d + (3 * d * d + 3 * d) + (d * d + d) + (ff * d + ff) + (ff * d + d)
    assert sum(p.numel() for p in model.parameters()) == v * d + layers * layer + 2 * d == 123_653_376


def test_the_positions_are_where_the_weights_are():
    with torch.device("meta"):
        model = TransformerLM(vocab_size=8, d_model=8, n_heads=1, n_layers=1, d_ff=8, max_seq_len=8)
    assert model.position_table.device == model.token_embedding.weight.device == torch.device("meta")


def test_config_defaults_and_model_defaults_agree(root):
    with torch.device("meta"):
        by_default, by_config = TransformerLM(), build_model(load_config(root / "configs/config.yaml").model)
    shapes = {name: p.shape for name, p in by_default.state_dict().items()}
    assert shapes == {name: p.shape for name, p in by_config.state_dict().items()}
    assert by_default.max_seq_len == by_config.max_seq_len


def test_embedding_and_output_projection_are_one_tensor(tiny_model):
    matrices = [name for name, p in tiny_model.named_parameters() if p.shape == (300, 32)]
    assert matrices == ["token_embedding.weight"]
    hidden = {}
    tiny_model.final_norm.register_forward_hook(lambda _m, _i, output: hidden.update(last=output))
    logits, _ = tiny_model(TOKENS)
    torch.testing.assert_close(logits, hidden["last"] @ tiny_model.token_embedding.weight.T)


def test_positions_follow_the_formula():
    table = sinusoidal_positions(40, 16)
    for position in (0, 1, 7, 39):
        for i in range(8):
            angle = position / 10000 ** (2 * i / 16)
            assert table[position, 2 * i].item() == pytest.approx(POSITION_SCALE * math.sin(angle), abs=1e-8)
            assert table[position, 2 * i + 1].item() == pytest.approx(
                POSITION_SCALE * math.cos(angle), abs=1e-8
            )


def test_positions_are_as_large_as_a_fresh_embedding():
    model = build_model(TINY)
    table, embedding = model.position_table, model.token_embedding.weight
    assert table.square().mean().sqrt().item() == pytest.approx(embedding.std().item(), rel=0.03)


def test_tables_are_not_in_the_state_dict(tiny_model):
    assert not [key for key in tiny_model.state_dict() if "position" in key]


def test_learned_positions_are_weights():
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(
            vocab_size=300, d_model=32, n_layers=2, n_heads=2, d_ff=64, max_seq_len=32, positions="learned"
        )
    )
    table = model.position_vectors
    assert table is model.state_dict(keep_vars=True)["position_embedding.weight"]
    assert table.shape == (32, 32) and table.std().item() == pytest.approx(0.02, rel=0.1)
    # With a sinusoidal table in their place the two kinds are one model.
    with torch.no_grad():
        table.copy_(sinusoidal_positions(32, 32))
    fixed = build_model(
        ModelConfig(vocab_size=300, d_model=32, n_layers=2, n_heads=2, d_ff=64, max_seq_len=32)
    )
    fixed.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("position")})
    assert torch.equal(fixed(TOKENS)[0], model(TOKENS)[0])
    mask = torch.ones_like(TOKENS)
    mask[:, :3] = 0
    assert torch.equal(fixed(TOKENS, mask)[0], model(TOKENS, mask)[0])
    model.loss_sums(TOKENS, TOKENS)[0].backward()
    assert table.grad[:19].ne(0).any(dim=1).all() and table.grad[20:].eq(0).all()


def test_initial_weights():
    torch.manual_seed(0)
    model = TransformerLM(vocab_size=500, d_model=128, n_heads=4, n_layers=8, d_ff=256, max_seq_len=16)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert p.eq(0).all(), name
        elif "norm" in name:
            assert p.eq(1).all(), name
        else:
            # Two residual branches per layer: 1 / sqrt(16).
            expected = 0.02 / 4 if name.endswith("output.weight") else 0.02
            assert p.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(p.mean().item()) < expected / 20, name


@pytest.mark.parametrize(
    "shape",
    [
        ModelConfig(vocab_size=50257, d_model=768, n_layers=2, n_heads=12, d_ff=3072, max_seq_len=64),
        ModelConfig(vocab_size=2048, d_model=256, n_layers=4, n_heads=4, d_ff=1024, max_seq_len=128),
    ],
    ids=["width of the default model", "quickstart"],
)
def test_a_fresh_model_knows_nothing(shape):
    torch.manual_seed(0)
    model = build_model(shape)
    tokens = torch.randint(0, shape.vocab_size, (2, shape.max_seq_len))
    _, loss = model(tokens, labels=tokens)
    # Logits of variance s2 cost s2 / 2 more than none at all: s2 is 0.02^2 x d_model.
    expected = math.log(shape.vocab_size) + 0.02**2 * shape.d_model / 2
    assert loss.item() == pytest.approx(expected, abs=0.1)


def test_the_layer_is_pre_norm_with_tanh_gelu():
    layer = build_model(TINY).blocks[0]
    nn.init.normal_(layer.attention.qkv.bias)
    nn.init.uniform_(layer.attention_norm.weight)
    nn.init.normal_(layer.feed_forward.expand.weight, std=0.5)  # far enough from 0 to tell two GELUs apart
    x = torch.randn(2, 9, 32)

    normed = F.layer_norm(x, (32,), layer.attention_norm.weight, layer.attention_norm.bias)
    query, key, value = layer.attention.qkv(normed).split(32, dim=-1)
    heads = []
    for head in (slice(0, 16), slice(16, 32)):
        scores = query[..., head] @ key[..., head].transpose(1, 2) / 4
        future = torch.ones(9, 9, dtype=torch.bool).triu(1)
        heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ value[..., head])
    x1 = x + layer.attention.output(torch.cat(heads, dim=-1))
    inner = layer.feed_forward.expand(F.layer_norm(x1, (32,)))
    gelu = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    torch.testing.assert_close(layer(x), x1 + layer.feed_forward.output(gelu), atol=1e-6, rtol=1e-5)


def test_no_token_sees_the_future(tiny_model):
    before, _ = tiny_model(TOKENS)
    for position in (0, 7, 19):
        changed = TOKENS.clone()
        changed[:, position] = (changed[:, position] + 1) % 300
        after, _ = tiny_model(changed)
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.isclose(after[:, position:], before[:, position:]).all(dim=-1).any()


def test_position_matters(tiny_model):
    # The same tokens before the last one, in another order.
    logits, _ = tiny_model(torch.tensor([[5, 6, 7, 8], [7, 5, 6, 8]]))
    assert not torch.allclose(logits[0, 3], logits[1, 3], atol=1e-3)


def test_loss_is_the_mean_over_next_tokens_that_count(tiny_model):
    labels = TOKENS.clone()
    labels[0, 4:9] = -100
    labels[2, 0] = -100  # nothing predicts the first token: must change nothing
    logits, loss = tiny_model(TOKENS, labels=labels)
    log_probabilities = logits.double().log_softmax(-1)
    losses = [
        -log_probabilities[row, t, labels[row, t + 1]].item()
        for row in range(3)
        for t in range(19)
        if labels[row, t + 1] != -100
    ]
    assert len(losses) == 3 * 19 - 5
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert loss.dtype == torch.float32


def test_no_labels_no_loss_and_no_counted_label_no_nan(tiny_model):
    assert tiny_model(TOKENS)[1] is None
    _, loss = tiny_model(TOKENS, labels=torch.full_like(TOKENS, -100))
    assert loss.item() == 0


def test_loss_sums_is_the_same_loss_and_counts(tiny_model):
    labels = TOKENS.clone()
    labels[1, 3:] = -100
    logits, loss = tiny_model(TOKENS, labels=labels)
    total, count, correct = tiny_model.loss_sums(TOKENS, labels)
    assert count.item() == 2 * 19 + 2
    assert (total / count).item() == pytest.approx(loss.item(), rel=1e-6)
    assert correct.item() == (logits[:, :-1].argmax(-1) == labels[:, 1:]).sum().item()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(tiny_model, side):
    lengths = [20, 13, 1]
    padded = torch.full((3, 20), 299)
    mask = torch.zeros(3, 20, dtype=torch.long)
    spans = [slice(20 - n, 20) if side == "left" else slice(0, n) for n in lengths]
    for row, span in enumerate(spans):
        padded[row, span] = TOKENS[row, : lengths[row]]
        mask[row, span] = 1
    logits, loss = tiny_model(padded, attention_mask=mask, labels=padded)
    total = 0.0
    for row, span in enumerate(spans):
        alone = TOKENS[row : row + 1, : lengths[row]]
        expected, _ = tiny_model(alone)
        torch.testing.assert_close(logits[row, span], expected[0], atol=1e-5, rtol=1e-5)
        total += tiny_model.loss_sums(alone, alone)[0].item()
    assert torch.isfinite(logits).all()
    assert loss.item() == pytest.approx(total / (19 + 12 + 0), rel=1e-5)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in tiny_model.parameters())


def test_a_full_mask_is_no_mask(tiny_model):
    torch.testing.assert_close(
        tiny_model(TOKENS, attention_mask=torch.ones_like(TOKENS))[0], tiny_model(TOKENS)[0]
    )


def test_it_can_learn_one_batch_by_heart(tiny_model):
    optimizer = torch.optim.AdamW(tiny_model.parameters(), lr=1e-2)
    for _ in range(60):
        loss, count, correct = tiny_model.loss_sums(TOKENS, TOKENS)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (loss / count).item() < 0.05
    assert correct == count


def test_every_parameter_gets_a_gradient(tiny_model):
    tiny_model.loss_sums(TOKENS, TOKENS)[0].backward()
    assert not [name for name, p in tiny_model.named_parameters() if p.grad is None or p.grad.eq(0).all()]


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_gradient(dropout, kind):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        changes = {"dropout": dropout, "gradient_checkpointing": checkpointing}
        model = build_model(SHAPES[kind].model_copy(update=changes))
        torch.manual_seed(1)
        calls = []
        model.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model.loss_sums(TOKENS, TOKENS)[0].backward()
        # Recomputed in the backward pass, or this test compares a thing with itself.
        assert len(calls) == (2 if checkpointing else 1)
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_dropout_works_in_training_only():
    torch.manual_seed(0)
    model = TransformerLM(
        vocab_size=300, d_model=32, n_heads=2, n_layers=2, d_ff=64, max_seq_len=32, dropout=0.5
    )
    assert not torch.allclose(model(TOKENS)[0], model(TOKENS)[0])
    model.eval()
    assert torch.equal(model(TOKENS)[0], model(TOKENS)[0])
    attention = model.blocks[0].attention
    x = torch.randn(1, 9, 32)
    assert torch.equal(attention(x), attention(x))
    attention.train()
    assert not torch.allclose(attention(x), attention(x))


@pytest.mark.parametrize("branch", ["attention", "feed_forward"])
def test_both_branches_of_a_layer_are_dropped(branch):
    layer = TransformerLayer(8, 2, 16, dropout=0.0).train()
    other = layer.feed_forward if branch == "attention" else layer.attention
    for parameter in other.output.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 5, 8)
    assert not torch.allclose(layer(x), x)
    getattr(layer, branch).output_dropout.p = 1.0  # the whole branch: nothing is added to the residual stream
    assert torch.equal(layer(x), x)
    assert not torch.allclose(layer.eval()(x), x)


@pytest.fixture
def opinionated_model(tiny_model):
    """Fresh weights make almost flat logits; larger ones choose, so that a mistake shows."""
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(5)
    return tiny_model


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0}, {"temperature": 1.3}, {"temperature": 0.9, "top_k": 20, "top_p": 0.8}],
    ids=["greedy", "sampled", "sampled from a cut"],
)
@pytest.mark.parametrize("prompt_length", [1, 5, 31, 32, 40])
def test_cached_equals_uncached(opinionated_model, settings, prompt_length):
    prompts = torch.randint(0, 300, (3, prompt_length), generator=torch.Generator().manual_seed(3))
    # 60 new tokens run over the end of the 32-token context more than once.
    cached, uncached = (
        opinionated_model.generate(
            prompts, 60, use_cache=use_cache, generator=torch.Generator().manual_seed(4), **settings
        )
        for use_cache in (True, False)
    )
    assert cached.shape == (3, prompt_length + 60)
    assert torch.equal(cached[:, :prompt_length], prompts)
    assert torch.equal(cached, uncached)


def test_cached_logits_equal_forward(opinionated_model):
    opinionated_model.eval()
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(3))
    cache = opinionated_model.new_cache(2)
    steps = [opinionated_model.cached_logits(tokens[:, :7], cache)]
    steps += [opinionated_model.cached_logits(tokens[:, t : t + 1], cache) for t in range(7, 20)]
    expected, _ = opinionated_model(tokens)
    torch.testing.assert_close(torch.stack(steps, dim=1), expected[:, 6:], atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_greedy_is_the_argmax_of_forward(opinionated_model):
    tokens = opinionated_model.generate(PROMPTS, 20, temperature=0)
    opinionated_model.eval()
    for end in range(5, 25):
        logits, _ = opinionated_model(tokens[:, :end])
        assert torch.equal(logits[:, -1].argmax(-1), tokens[:, end])
    assert len(tokens[:, 5:].unique()) > 5  # something was said


def test_rows_of_a_batch_do_not_touch_each_other(opinionated_model):
    together = opinionated_model.generate(PROMPTS, 40, temperature=0)
    for row in range(3):
        assert torch.equal(
            opinionated_model.generate(PROMPTS[row : row + 1], 40, temperature=0)[0], together[row]
        )


def test_a_long_prompt_counts_by_its_newest_part(opinionated_model):
    prompt = torch.randint(0, 300, (1, 100), generator=torch.Generator().manual_seed(3))
    whole = opinionated_model.generate(prompt, 10, temperature=0)
    newest = opinionated_model.generate(prompt[:, -32:], 10, temperature=0)
    assert torch.equal(whole[:, 100:], newest[:, 32:])


def test_ended_rows_are_padded_and_the_call_stops_with_the_last(tiny_model, monkeypatch):
    # Rows that have ended are not computed any more.
    script = iter([[7, 1, 1], [9, 8, 1], [9, 2], [9], [5, 5, 5]])
    monkeypatch.setattr(
        "horovod_transformer.model.decoding.next_tokens", lambda *_: torch.tensor(next(script))
    )
    tiny_model.pad_token_id = 0
    new = tiny_model.generate(PROMPTS, 50, eos_token_id=9)[:, 5:]
    assert new.tolist() == [[7, 9, 0, 0], [1, 8, 9, 0], [1, 1, 2, 9]]


def test_generate_draws_without_dropout_and_leaves_the_mode_alone(tiny_model):
    for layer in tiny_model.blocks:
        layer.attention.dropout = layer.attention.output_dropout.p = layer.feed_forward.output_dropout.p = 0.5
    for training in (True, False):
        tiny_model.train(training)
        outputs = [tiny_model.generate(PROMPTS, 20, temperature=0) for _ in range(2)]
        assert torch.equal(*outputs)
        assert tiny_model.training is training
    with pytest.raises(ValueError, match="at least one token"):
        tiny_model.generate(PROMPTS[:, :0], 1)


def test_too_long_an_input_and_shapes_that_do_not_fit_are_refused(tiny_model):
    with pytest.raises(ValueError, match="33 tokens do not fit into a context of 32"):
        tiny_model(torch.zeros(1, 33, dtype=torch.long))
    for d_model, n_heads in ((30, 4), (9, 3)):
        with pytest.raises(ValueError, match="d_model must be even and a multiple of n_heads"):
            TransformerLM(vocab_size=10, d_model=d_model, n_heads=n_heads, n_layers=1)
    with pytest.raises(ValueError, match="rotary positions need heads of even width, not 3"):
        TransformerLM(vocab_size=10, d_model=6, n_heads=2, n_layers=1, positions="rotary")


@pytest.mark.parametrize("kind", SHAPES)
def test_a_state_dict_restores_the_model(kind):
    torch.manual_seed(99)
    tiny_model, other = build_model(SHAPES[kind]), build_model(SHAPES[kind])
    assert not torch.equal(other(TOKENS)[0], tiny_model(TOKENS)[0])
    other.load_state_dict(tiny_model.state_dict())
    assert torch.equal(other(TOKENS)[0], tiny_model(TOKENS)[0])


def test_the_promised_name():
    from src.models.transformer_lm import TransformerLM as Promised

    assert Promised is TransformerLM
