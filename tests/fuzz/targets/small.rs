//! A model with one layer and two tokens.

use crate::draft::Draft;

/// Elements of a row of every matrix.
const WIDTH: usize = 32;

/// The file of one whose context has so many tokens.
pub(crate) fn model(context_tokens: u32) -> Vec<u8> {
    let mut draft = Draft::default();
    draft.bytes("general.architecture", b"llama");
    for (key, value) in [
        ("llama.block_count", 1),
        ("llama.context_length", context_tokens),
        ("llama.embedding_length", WIDTH as u32),
        ("llama.feed_forward_length", WIDTH as u32),
        ("llama.attention.head_count", 1),
    ] {
        draft.put(key, 4, &value.to_le_bytes());
    }
    let epsilon = 1e-5_f32.to_le_bytes();
    draft.put("llama.attention.layer_norm_rms_epsilon", 6, &epsilon);
    draft.bytes("tokenizer.ggml.model", b"gpt2");
    draft.bytes("tokenizer.ggml.pre", b"gpt-2");
    draft.texts("tokenizer.ggml.tokens", &["a", "b"]);
    draft.texts::<&str>("tokenizer.ggml.merges", &[]);
    draft.put("tokenizer.ggml.bos_token_id", 4, &0_u32.to_le_bytes());
    let mut file = draft.finish();

    let mut data = Vec::new();
    let mut tensors = 0_u64;
    let mut tensor = |name: &str, rows: Option<usize>| {
        let dims: &[usize] = match &rows {
            Some(rows) => &[WIDTH, *rows],
            None => &[WIDTH],
        };
        tensors += 1;
        file.extend((name.len() as u64).to_le_bytes());
        file.extend(name.as_bytes());
        file.extend((dims.len() as u32).to_le_bytes());
        for &dim in dims {
            file.extend((dim as u64).to_le_bytes());
        }
        // Q8_0 or F32.
        file.extend(if rows.is_some() { 8_u32 } else { 0 }.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        match rows {
            // An f16 scale of about a hundredth, then levels.
            Some(rows) => data.extend((0..rows).flat_map(|row| {
                let levels = (0..WIDTH).map(move |at| (row * 89 + at * 57 + at * at * row) as u8);
                [0x1f, 0x21].into_iter().chain(levels)
            })),
            None => data.extend((0..WIDTH).flat_map(|_| 1_f32.to_le_bytes())),
        }
        data.resize(data.len().next_multiple_of(32), 0);
    };
    tensor("token_embd.weight", Some(2));
    tensor("output_norm.weight", None);
    for norm in ["attn_norm", "ffn_norm"] {
        tensor(&format!("blk.0.{norm}.weight"), None);
    }
    for matrix in [
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ] {
        tensor(&format!("blk.0.{matrix}.weight"), Some(WIDTH));
    }
    file[8..16].copy_from_slice(&tensors.to_le_bytes());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    file
}
