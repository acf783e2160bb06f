"""What tools read off the model besides activations, and what it says of things that it does not have."""

import pytest
import torch
import transformer_lens.utilities as utilities

from icl_interp.errors import ConfigError
from icl_interp.model import ICLTransformer


@pytest.fixture
def model(deep):
    return deep.model


def test_positions_and_outputs_have_names(deep, model):
    assert model.to_str_tokens(deep.prompt) == ["#0", "#1", "#2", "#3", "#4", "query"]
    assert model.to_single_token("y1") == 1
    with pytest.raises(ConfigError, match="the outputs are y0, y1, got ' cat'"):
        model.to_single_token(" cat")
    assert torch.equal(model.tokens_to_residual_directions(torch.tensor([[1, 0]])), model.W_U.T[[1, 0]][None])


def test_parts_of_the_model(deep, model):
    assert [layer for layer, _ in model.blocks_with("attn")] == [0, 1]
    assert model.blocks_with("mlp") == []
    assert not model.accumulated_bias(1, mlp_input=True).any()
    assert model.ln_final(deep.prompt.z) is not None
    assert set(model.tl_parameters()) == {name for name, _ in model.named_parameters()}


def test_prompts_in_the_place_of_tokens(deep, model):
    tokens = model.to_tokens(deep.prompt)
    assert (tokens.shape, tokens.ndim, len(tokens)) == (deep.prompt.shape, deep.prompt.ndim, 3) == ((3, 6), 2, 3)
    assert tokens[1:].to("cpu").shape == (2, 6)
    assert torch.equal(tokens[torch.tensor([2, 0])].y_q, deep.prompt.y_q[[2, 0]])
    joined = model.to_tokens([deep.prompt[:1], tokens[1:]])
    assert torch.equal(joined.z, deep.prompt.z)
    assert torch.equal(joined.y_q, deep.prompt.y_q)
    assert model.to_tokens([deep.prompt, deep.prompt.z]).y_q is None


def test_weights_of_all_layers_cannot_be_set(model):
    with pytest.raises(AttributeError, match="this is computed from the blocks' weights"):
        model.W_Q = torch.zeros(1)
    with pytest.raises(AttributeError, match=r"W_U = \[0; I_N\]|this is computed from the blocks' weights"):
        model.W_U = torch.zeros(1)
    assert "d_head" in ICLTransformer.W_Q.__doc__


# ---- what is not there


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *((name, "no vocabulary; model.predict") for name in ("generate", "to_string", "tokenizer", "set_tokenizer")),
        *((name, "read prompt.z, or the activation hook_embed") for name in ("embed", "W_E", "W_pos", "pos_embed")),
        *((name, "there is no MLP: a block is attention alone") for name in ("W_in", "W_out", "b_in")),
    ],
)
def test_what_a_hooked_transformer_has_besides(model, name, says):
    assert not hasattr(model, name)
    with pytest.raises(AttributeError, match=f"ICLTransformer has no '{name}': .*{says}"):
        getattr(model, name)


def test_there_is_no_mlp(model):
    assert not hasattr(model.blocks[0], "mlp")
    with pytest.raises(AttributeError, match="Block has no 'mlp': there is no MLP: a block is attention alone"):
        model.blocks[0].mlp
    with pytest.raises(AttributeError, match="'Block' object has no attribute 'mpl'"):
        model.blocks[0].mpl
    with pytest.raises(AttributeError, match="'ICLTransformer' object has no attribute 'blocs'"):
        model.blocs
    with pytest.raises(ConfigError, match=r"no hook point 'blocks\.0\.mlp\.hook_post' fires"):
        model.add_hook("blocks.0.mlp.hook_post", lambda activation, hook: None)


def test_tools_for_text_say_that_there_is_none(model):
    for prompt, answer in (("The cat sat on the", "mat"), ("The cat sat on the", ["mat", "rug"])):
        with pytest.raises(ConfigError, match="it has no vocabulary, so there is no text that it could read or write"):
            utilities.test_prompt(prompt, answer, model)
    for call in (lambda: model.to_tokens("text"), lambda: model.to_str_tokens("text", prepend_bos=False)):
        with pytest.raises(ConfigError, match=r"reads a Prompt, or its z .*got str; it has no vocabulary"):
            call()


def test_prompts_are_not_token_ids(deep, model):
    for name in ("dtype", "repeat", "unique"):
        with pytest.raises(AttributeError, match=f"columns of numbers, not token ids, so they have no '{name}'"):
            getattr(model.to_tokens(deep.prompt), name)
