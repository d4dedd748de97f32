"""Keywords that a function lacks: refused, with the argument that was probably meant."""

import difflib

# What transformers, keras-hub and nanoGPT call what has another name here.
_FOREIGN = {
    "vocabulary_size": ("vocab_size", "n_vocab"),
    "num_layers": ("n_layer", "n_layers", "num_hidden_layers"),
    "num_heads": ("n_head", "n_heads", "num_attention_heads"),
    "hidden_dim": ("n_embd", "hidden_size", "d_model", "embed_dim"),
    "intermediate_dim": ("n_inner", "intermediate_size", "d_ff"),
    "max_sequence_length": ("block_size", "n_positions", "n_ctx", "max_position_embeddings"),
    "dropout": ("resid_pdrop", "embd_pdrop", "summary_first_dropout", "classifier_dropout"),
    "attention_dropout": ("attn_pdrop", "attention_probs_dropout_prob"),
    "recompute": ("gradient_checkpointing", "remat"),
    "layer_norm_epsilon": ("layer_norm_eps", "rms_norm_eps"),
    "activation": ("activation_function", "hidden_act"),
    "tokenizer": ("preprocessor", "processing_class"),
    "num_classes": ("num_labels",),
    "num_outputs": ("num_labels",),
    "class_names": ("id2label", "label2id"),
    "multi_label": ("problem_type",),
    "label_smoothing": ("label_smoothing_factor",),
    "lm_loss_weight": ("lm_coef",),
    "rank": ("r",),
    "lora_alpha": ("alpha",),
    "target_layer_names": ("target_modules",),
    "num_blocks": ("n_transfer",),
    "dtype": ("torch_dtype",),
    "path": ("filepath",),
    "steps": ("num_training_steps", "max_steps", "max_iters", "lr_decay_iters", "decay_steps"),
    "learning_rate": ("lr", "max_lr", "initial_learning_rate"),
    "final_learning_rate": ("min_lr",),
    "warmup_steps": ("num_warmup_steps", "warmup_iters"),
    "warmup": ("warmup_ratio",),
    "clip_norm": ("max_grad_norm", "grad_clip", "clipnorm", "global_clipnorm"),
    "sequence_length": ("seq_len", "block_size", "max_length"),
    "batch_size": ("per_device_train_batch_size",),
    "y": ("labels", "targets"),
    "epochs": ("num_train_epochs", "nb_epoch", "max_epochs"),
    "validation_data": ("eval_dataset", "val_data"),
    "allow_special": ("allowed_special",),
    "save_freq": ("save_steps",),
    "prompts": ("input_ids", "inputs"),
    "max_new_tokens": ("max_length", "max_tokens"),
    "min_new_tokens": ("min_length", "min_tokens"),
    "return_prompt": ("strip_prompt", "return_full_text", "echo"),
    "stop_token_ids": ("eos_token_id", "stop_tokens"),
    "stop": ("stop_strings", "stop_sequences", "stopping_criteria"),
    "temperature": ("do_sample",),
    "top_k": ("k",),
    "top_p": ("p", "nucleus"),
    "repetition_penalty": ("frequency_penalty", "presence_penalty"),
    "num_return_sequences": ("n", "num_samples"),
    "return_log_probabilities": ("output_scores", "output_logits", "logprobs", "return_scores"),
    "stream": ("streamer",),
    "sampler": ("num_beams", "penalty_alpha"),
}
# What else to say of a foreign name.
_NOTES = {
    "max_length": "It counts new tokens only.",
    "min_length": "It counts new tokens only.",
    "do_sample": 'temperature=1.0 is do_sample=True, sampler="greedy" is False.',
    "num_beams": 'Try sampler="beam", or keras_hub.samplers.BeamSampler(num_beams=4).',
    "penalty_alpha": 'Try sampler="contrastive", or keras_hub.samplers.ContrastiveSampler(k=4).',
}
_OF_THE_OPTIMIZER = dict.fromkeys(
    ("learning_rate", "lr", "weight_decay"),
    "It belongs to the optimizer: try compile(kgpt.recipes.AdamW(learning_rate=...)).",
)
# What the functions with a certain argument do not have.
_NOT_BESIDE = {
    "allow_special": {
        "add_special_tokens": "Nothing is added at either end: try [*ids, "
        "tokenizer.end_of_text_id].",
        **dict.fromkeys(
            ("padding", "truncation", "return_tensors"),
            "The ids are those of the text alone. The functions of kgpt.data make batches.",
        ),
    },
    "validation_split": {
        **_OF_THE_OPTIMIZER,
        "optimizer": "It belongs to compile: try compile(optimizer).",
    },
    "stride": {
        "scoring_mode": 'Try reduction="none" for each token; logits are lm(token_ids).',
        "target_ids": "The target of a token is the next one.",
    },
    "backbone": {
        "activation": "The outputs are as they come, logits for classes: try "
        "keras.ops.softmax(logits). The body's is an argument of kgpt.GPTBackbone.",
        "dtype": "It is the backbone's: try kgpt.GPTBackbone(..., dtype=...).",
    },
    "cache_dir": {
        "subfolder": "Try the path of the folder itself.",
        "device_map": "Keras places the tensors.",
        "trust_remote_code": "Nothing in the files is run.",
        "token": "It is the one of `hf auth login`.",
    },
    "load_weights": dict.fromkeys(("revision", "cache_dir"), "kgpt.from_huggingface has it."),
    "jit_compile": {
        **_OF_THE_OPTIMIZER,
        "sampler": "It belongs to the call: try lm.generate(..., sampler=...).",
    },
    "prompts": {
        "early_stopping": "Beams end when all have stopped, or after max_new_tokens.",
        "length_penalty": "Beams are compared by their log-probability as it is.",
        "attention_mask": "Prompts may have any lengths: try lists of ids without padding.",
        "padding_mask": "Prompts may have any lengths: try lists of ids without padding.",
        "pad_token_id": "Prompts may have any lengths: results have no padding.",
        "use_cache": "Keys and values are always cached.",
        "logits_processor": "Try a keras_hub.samplers.Sampler of your own.",
        "bad_words_ids": "Try a keras_hub.samplers.Sampler of your own.",
        "typical_p": "Try top_p or min_p.",
        "return_dict_in_generate": "Try return_log_probabilities.",
    },
}


def check_keywords(function_name: str, known, unknown):
    """Raises TypeError for keywords that are no arguments, with the ones probably meant.

    Args:
        function_name: the function's or the class's name, for the message.
        known: the names of the arguments.
        unknown: the keywords that are no arguments.
    """
    meanings = {foreign: own for own in known for foreign in _FOREIGN.get(own, ())}
    meanings.update({own: own for own in known})
    sentences = []
    reasons = {}
    for argument in known:
        reasons.update(_NOT_BESIDE.get(argument, {}))
    for name in unknown:
        if name in reasons:
            hint = reasons[name]
        elif near := difflib.get_close_matches(name, meanings, n=1, cutoff=0.5):
            note = f" {_NOTES[near[0]]}" if near[0] in _NOTES else ""
            hint = f"Did you mean {meanings[near[0]]}?{note}"
        else:
            hint = f"It has {', '.join(one for one in known if one[0] != '_')}."
        sentences.append(f"{function_name}() has no argument {name!r}. {hint}")
    if sentences:
        raise TypeError(" ".join(sentences))
