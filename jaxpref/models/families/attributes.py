"""Attributes of Hugging Face configs that every family treats alike.

Some have no effect on the function: `NO_EFFECT`.  Some say again, under another name, what another
attribute says: `OTHER_NAMES`.  Some say that the weights are quantised: `QUANTISED`.
"""

# What transformers' base class (`PreTrainedConfig` of 5.24, and of the versions before it) defines
# for models of every kind, and no decoder's forward pass reads.  Not here, because they change it:
# `add_cross_attention`, `is_encoder_decoder`, `per_layer_config`, `pruned_heads`.  Token ids are
# taken from the tokenizer and generation_config.json; torch's embedding gives the row of
# `pad_token_id` no gradient, here it is a token like the others.
_BASE_CLASS = """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _experts_implementation _experts_implementation_internal _flash_attn_2_enabled _name_or_path
    _num_labels _output_attentions attn_implementation bos_token_id chunk_size_feed_forward
    decoder_start_token_id dtype eos_token_id experts_implementation finetuning_task
    gradient_checkpointing id2label is_decoder label2id name_or_path num_labels output_attentions
    output_hidden_states output_past pad_token_id prefix problem_type return_dict sep_token_id
    task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class torch_dtype torchscript
    transformers_version use_bfloat16 xla_device
"""
# Settings of generation, which older versions kept in config.json; their place is
# generation_config.json.
_GENERATION = """
    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens
    cache_implementation diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty
    force_words_ids forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens
    min_length min_p no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule
    num_beam_groups num_beams num_return_sequences output_scores penalty_alpha
    remove_invalid_values renormalize_logits repetition_penalty return_dict_in_generate
    suppress_tokens target_lookbehind temperature top_k top_p typical_p use_cache
"""
# Of initialisation, of a product that may be split (`pretraining_tp`), of code beside the model
# that is never run, and notes of other programs.
_OTHER = """
    auto_map initializer_range pretraining_tp transformers.js_config unsloth_fixed unsloth_version
"""
NO_EFFECT = frozenset(f"{_BASE_CLASS} {_GENERATION} {_OTHER}".split())

_SAME = (
    "max_position_embeddings n_positions n_ctx max_sequence_length max_seq_length max_seq_len "
    "seq_length model_max_length",
    "hidden_size n_embd d_model",
    "num_hidden_layers n_layer n_layers num_layers",
    "num_attention_heads n_head n_heads",
    "num_key_value_heads n_kv_heads num_kv_heads",
    "intermediate_size n_inner ffn_dim ffn_hidden_size",
    "head_dim kv_channels",
    "rms_norm_eps layer_norm_epsilon layer_norm_eps norm_eps",
    "hidden_act hidden_activation activation_function",
    "sliding_window sliding_window_size window_size",
    "tie_word_embeddings tie_embeddings tied_embeddings",
)
OTHER_NAMES = {
    name: tuple(other for other in line.split() if other != name)
    for line in _SAME
    for name in line.split()
}
"""A name -> the others for the same thing.

transformers reads one of them in each family; another one is harmless where it says the same.
"""

QUANTISED = ("quantization_config", "compression_config", "quantization")
"""FP8, bitsandbytes, GPTQ, AWQ and their like; compressed-tensors of old; MLX."""
