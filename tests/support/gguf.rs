//! Writes GGUF files: any for the reader's tests, and a tiny Llama that generates tokens.

use half::{bf16, f16};
use ihip_model::weights::Encoding;

/// A GGUF file in the making. Nothing is checked: a test may write what no converter would.
#[derive(Clone, Debug)]
pub struct Builder {
    /// The version in the header.
    pub version: u32,
    /// What tensor data and offsets are aligned to; goes into the metadata only as an entry of its own.
    pub alignment: usize,
    /// Metadata in the order of the file.
    pub metadata: Vec<(String, Meta)>,
    /// Tensors in the order of the file.
    pub tensors: Vec<Tensor>,
}

/// A metadata value.
#[derive(Clone, Debug)]
pub enum Meta {
    /// Type 4.
    U32(u32),
    /// Type 6.
    F32(f32),
    /// Type 7.
    Bool(bool),
    /// Type 8.
    String(String),
    /// Type 9 of type 8.
    Strings(Vec<String>),
    /// Type 9 of type 5.
    Integers(Vec<i32>),
    /// Any type code and the bytes that follow it.
    Raw(u32, Vec<u8>),
}

impl From<&str> for Meta {
    fn from(string: &str) -> Self {
        Self::String(string.into())
    }
}

/// A tensor of the directory and its data.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Extents, fastest first.
    pub shape: Vec<u64>,
    /// ggml's type code.
    pub code: u32,
    /// What is added to its offset; not 0 only in damaged files.
    pub shift: u64,
    /// The stored bytes.
    pub bytes: Vec<u8>,
}

/// A file and where its parts begin.
#[derive(Clone, Debug)]
pub struct Built {
    /// The file.
    pub bytes: Vec<u8>,
    /// Ends of the header, of every entry, of the padding and of every tensor's data, ascending.
    pub boundaries: Vec<usize>,
}

impl Builder {
    /// An empty file of version 3.
    #[must_use]
    pub const fn new() -> Self {
        Self { version: 3, alignment: 32, metadata: Vec::new(), tensors: Vec::new() }
    }

    /// Sets a metadata value, in its old place where the key is there.
    pub fn set(&mut self, key: &str, value: impl Into<Meta>) -> &mut Self {
        let value = value.into();
        match self.metadata.iter_mut().find(|(other, _)| other == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.into(), value)),
        }
        self
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(other, _)| other != key);
        self
    }

    /// The tensor of a name.
    ///
    /// # Panics
    /// When there is none.
    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("a tensor of that name")
    }

    /// Appends a tensor.
    pub fn push(&mut self, name: &str, shape: &[u64], encoding: Encoding, values: &[f32]) -> &mut Self {
        self.tensors.push(Tensor {
            name: name.into(),
            shape: shape.into(),
            code: encoding.code(),
            shift: 0,
            bytes: encode(encoding, values),
        });
        self
    }

    /// The file.
    #[must_use]
    pub fn build(&self) -> Built {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        let mut boundaries = vec![bytes.len()];
        for (key, value) in &self.metadata {
            put_string(&mut bytes, key);
            put_value(&mut bytes, value);
            boundaries.push(bytes.len());
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_string(&mut bytes, &tensor.name);
            bytes.extend((tensor.shape.len() as u32).to_le_bytes());
            bytes.extend(tensor.shape.iter().flat_map(|extent| extent.to_le_bytes()));
            bytes.extend(tensor.code.to_le_bytes());
            bytes.extend((offset as u64).wrapping_add(tensor.shift).to_le_bytes());
            boundaries.push(bytes.len());
            offset = (offset + tensor.bytes.len()).next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
            boundaries.push(bytes.len());
            bytes.extend(&tensor.bytes);
            boundaries.push(bytes.len());
        }
        Built { bytes, boundaries }
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

fn put_string(bytes: &mut Vec<u8>, string: &str) {
    bytes.extend((string.len() as u64).to_le_bytes());
    bytes.extend(string.as_bytes());
}

fn put_value(bytes: &mut Vec<u8>, value: &Meta) {
    let code: u32 = match value {
        Meta::U32(_) => 4,
        Meta::F32(_) => 6,
        Meta::Bool(_) => 7,
        Meta::String(_) => 8,
        Meta::Strings(_) | Meta::Integers(_) => 9,
        Meta::Raw(code, _) => *code,
    };
    bytes.extend(code.to_le_bytes());
    match value {
        Meta::U32(number) => bytes.extend(number.to_le_bytes()),
        Meta::F32(number) => bytes.extend(number.to_le_bytes()),
        Meta::Bool(boolean) => bytes.push(u8::from(*boolean)),
        Meta::String(string) => put_string(bytes, string),
        Meta::Strings(strings) => {
            bytes.extend(8_u32.to_le_bytes());
            bytes.extend((strings.len() as u64).to_le_bytes());
            strings.iter().for_each(|string| put_string(bytes, string));
        }
        Meta::Integers(integers) => {
            bytes.extend(5_u32.to_le_bytes());
            bytes.extend((integers.len() as u64).to_le_bytes());
            bytes.extend(integers.iter().flat_map(|integer| integer.to_le_bytes()));
        }
        Meta::Raw(_, raw) => bytes.extend(raw),
    }
}

/// Stores values the way ggml's own reference quantisers do.
///
/// # Panics
/// When the values are no whole number of blocks.
#[must_use]
pub fn encode(encoding: Encoding, values: &[f32]) -> Vec<u8> {
    assert!(values.len().is_multiple_of(encoding.block_elements()));
    let half = |value: f32| f16::from_f32(value).to_le_bytes();
    let extreme = |block: &[f32]| block.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(0.0);
    let inverse = |scale: f32| if scale == 0.0 { 0.0 } else { scale.recip() };
    let nibbles = |block: &[f32], level: &dyn Fn(f32) -> f32| -> Vec<u8> {
        let level = |value: f32| (level(value) + 0.5).clamp(0.0, 15.0) as u8;
        block[..16].iter().zip(&block[16..]).map(|(low, high)| level(*low) | (level(*high) << 4)).collect()
    };
    let blocks = values.chunks(32);
    match encoding {
        Encoding::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Encoding::F16 => values.iter().flat_map(|value| half(*value)).collect(),
        Encoding::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        Encoding::Q8_0 => blocks
            .flat_map(|block| {
                let scale = extreme(block).abs() / 127.0;
                let levels = block.iter().map(move |value| (value * inverse(scale)).round() as i8 as u8);
                half(scale).into_iter().chain(levels).collect::<Vec<_>>()
            })
            .collect(),
        Encoding::Q4_0 => blocks
            .flat_map(|block| {
                let scale = extreme(block) / -8.0;
                [&half(scale)[..], &nibbles(block, &|value| value * inverse(scale) + 8.0)].concat()
            })
            .collect(),
        Encoding::Q4_1 => blocks
            .flat_map(|block| {
                let minimum = block.iter().copied().fold(f32::INFINITY, f32::min);
                let maximum = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let scale = (maximum - minimum) / 15.0;
                let levels = nibbles(block, &|value| (value - minimum) * inverse(scale));
                [&half(scale)[..], &half(minimum), &levels].concat()
            })
            .collect(),
    }
}

/// The numbers of [`tiny_llama`].
pub mod tiny {
    /// Elements of a hidden state.
    pub const HIDDEN: usize = 64;
    /// Layers.
    pub const LAYERS: usize = 4;
    /// Query heads.
    pub const QUERY_HEADS: usize = 2;
    /// Key-value heads.
    pub const KV_HEADS: usize = 1;
    /// Elements of a head.
    pub const HEAD_DIM: usize = 32;
    /// Elements between the halves of the feed-forward layer.
    pub const FEED_FORWARD: usize = 96;
    /// Control tokens, in the order of their ids from 0; the last ends a generation.
    pub const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    /// Merges of the tokenizer.
    pub const MERGES: [&str; 12] =
        ["Ġ t", "h e", "Ġt he", "i n", "a n", "e r", "Ġ a", "o n", "n d", "Ġa nd", "Ġ Ġ", "Ċ Ċ"];
    /// Tokens of the vocabulary.
    pub const VOCABULARY: usize = CONTROL.len() + 256 + MERGES.len();
}

/// A Llama of four layers with weights that are noise, the same every time, in every encoding; a byte-level vocabulary
/// and a chat template. It writes nonsense, but it writes. Less than 200 KB.
#[must_use]
pub fn tiny_llama() -> Builder {
    use tiny::{FEED_FORWARD, HEAD_DIM, HIDDEN, KV_HEADS, LAYERS, QUERY_HEADS, VOCABULARY};

    let mut file = Builder::new();
    let number = |number: usize| Meta::U32(number as u32);
    file.set("general.architecture", "llama")
        .set("llama.block_count", number(LAYERS))
        .set("llama.context_length", number(8192))
        .set("llama.embedding_length", number(HIDDEN))
        .set("llama.feed_forward_length", number(FEED_FORWARD))
        .set("llama.attention.head_count", number(QUERY_HEADS))
        .set("llama.attention.head_count_kv", number(KV_HEADS))
        .set("llama.rope.dimension_count", number(HEAD_DIM))
        .set("llama.rope.freq_base", Meta::F32(10_000.0))
        .set("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5))
        .set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.pre", "smollm");
    let tokens = vocabulary();
    let types = (0..tokens.len()).map(|id| if id < tiny::CONTROL.len() { 3 } else { 1 }).collect();
    file.set("tokenizer.ggml.tokens", Meta::Strings(tokens))
        .set("tokenizer.ggml.token_type", Meta::Integers(types))
        .set("tokenizer.ggml.merges", Meta::Strings(tiny::MERGES.map(str::to_owned).into()))
        .set("tokenizer.ggml.bos_token_id", number(1))
        .set("tokenizer.ggml.eos_token_id", number(2))
        .set(
            "tokenizer.chat_template",
            "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
             {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        );

    let mut noise = Noise(0x1517_2502_0891_1000);
    let mut matrix = |file: &mut Builder, name: &str, columns: usize, rows: usize, encoding: Encoding| {
        let values: Vec<f32> = (0..columns * rows).map(|_| noise.next() * (3.0 / columns as f32).sqrt()).collect();
        file.push(name, &[columns as u64, rows as u64], encoding, &values);
    };
    let norm = |file: &mut Builder, name: &str| {
        let values: Vec<f32> = (0..HIDDEN).map(|index| 1.0 + (index % 7) as f32 / 16.0).collect();
        file.push(name, &[HIDDEN as u64], Encoding::F32, &values);
    };
    matrix(&mut file, "token_embd.weight", HIDDEN, VOCABULARY, Encoding::Q8_0);
    for layer in 0..LAYERS {
        let name = |tensor: &str| format!("blk.{layer}.{tensor}.weight");
        // Every encoding serves as every kind of matrix in some layer, or nearly.
        let encoding = |tensor: usize| Encoding::ALL[(layer + tensor) % 6];
        norm(&mut file, &name("attn_norm"));
        matrix(&mut file, &name("attn_q"), HIDDEN, QUERY_HEADS * HEAD_DIM, encoding(1));
        matrix(&mut file, &name("attn_k"), HIDDEN, KV_HEADS * HEAD_DIM, encoding(2));
        matrix(&mut file, &name("attn_v"), HIDDEN, KV_HEADS * HEAD_DIM, encoding(0));
        matrix(&mut file, &name("attn_output"), QUERY_HEADS * HEAD_DIM, HIDDEN, encoding(3));
        norm(&mut file, &name("ffn_norm"));
        matrix(&mut file, &name("ffn_gate"), HIDDEN, FEED_FORWARD, Encoding::Q4_0);
        matrix(&mut file, &name("ffn_up"), HIDDEN, FEED_FORWARD, Encoding::Q4_1);
        matrix(&mut file, &name("ffn_down"), FEED_FORWARD, HIDDEN, Encoding::Q8_0);
    }
    norm(&mut file, "output_norm.weight");
    file
}

/// Control tokens, one token a byte, and what the merges make.
fn vocabulary() -> Vec<String> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let bytes = (0..=u8::MAX).filter(printable).map(char::from);
    let others = ('\u{100}'..).take(256 - bytes.clone().count());
    let merged = tiny::MERGES.map(|merge| merge.replace(' ', ""));
    let control = tiny::CONTROL.map(str::to_owned);
    control.into_iter().chain(bytes.chain(others).map(String::from)).chain(merged).collect()
}

/// SplitMix64, for numbers that are the same on every machine.
struct Noise(u64);

impl Noise {
    /// Uniform in [−1, 1).
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((bits ^ (bits >> 31)) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }
}
