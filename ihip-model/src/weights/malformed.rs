//! What can be wrong inside a model file.

use thiserror::Error;

use super::blocks::{Encoding, type_name};

/// Shorthand for results about the contents of a file; the caller adds the path.
pub type Result<T> = std::result::Result<T, Malformed>;

/// The first thing found wrong in a GGUF file.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum Malformed {
    /// The first bytes are not those of a GGUF file.
    #[error("not a GGUF file: its {size} bytes do not begin with \"GGUF\"")]
    NotGguf {
        /// Bytes of the file.
        size: u64,
    },
    /// The file was written for big-endian machines.
    #[error(
        "a big-endian GGUF file, and only little-endian ones are read: convert the model again without --bigendian"
    )]
    BigEndian,
    /// A version of the format other than 2 and 3.
    #[error("GGUF version {version}, and only versions 2 and 3 are read: convert the model again")]
    Version {
        /// The file's version.
        version: u32,
    },
    /// The file ends inside something.
    #[error("truncated: {what} at byte {offset} needs {needed} bytes, but the file ends at byte {size}")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// Its length in bytes.
        needed: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// A count that cannot be true.
    #[error("truncated or damaged: it announces {count} {what}, more than its remaining {rest} bytes can hold")]
    Count {
        /// What is counted.
        what: &'static str,
        /// How many are announced.
        count: u64,
        /// Bytes that follow.
        rest: u64,
    },
    /// A string that is not UTF-8.
    #[error("{what} at byte {offset} is not UTF-8")]
    NotUtf8 {
        /// What kind of string.
        what: &'static str,
        /// Where it begins.
        offset: u64,
    },
    /// A metadata type that the format does not have.
    #[error("metadata key {key:?} has a value of unknown type {code}")]
    UnknownValueType {
        /// The key.
        key: String,
        /// The type code.
        code: u32,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("metadata key {key:?} has the boolean {byte}, which is neither 0 nor 1")]
    Boolean {
        /// The key.
        key: String,
        /// What is stored.
        byte: u8,
    },
    /// An array of arrays.
    #[error("metadata key {key:?} is an array of arrays, which no Llama model has")]
    NestedArray {
        /// The key.
        key: String,
    },
    /// An entry without a name.
    #[error("metadata entry {number} has an empty key")]
    EmptyKey {
        /// Which entry, counted from 0.
        number: u64,
    },
    /// A key that is there twice.
    #[error("metadata key {key:?} is there twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A key without which the model cannot run.
    #[error("metadata key {key:?} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A value of another type than the key asks for.
    #[error("metadata key {key:?} is {found} and should be {wanted}")]
    KeyType {
        /// The key.
        key: String,
        /// What it should be.
        wanted: &'static str,
        /// What it is, or a value that does not fit.
        found: &'static str,
    },
    /// A number outside what a model can have.
    #[error("metadata key {key:?} is {value} and should be {wanted}")]
    KeyRange {
        /// The key.
        key: String,
        /// Its value.
        value: f64,
        /// What it should be.
        wanted: &'static str,
    },
    /// A number that another should divide.
    #[error("{a} is {a_value} and should be a multiple of {b}, which is {b_value}")]
    NotAMultiple {
        /// The number's name.
        a: &'static str,
        /// The number.
        a_value: usize,
        /// The divisor's name.
        b: &'static str,
        /// The divisor.
        b_value: usize,
    },
    /// Heads that cannot be rotated.
    #[error("the head dimension is {head_dim} and should be even: rotary embedding turns elements in pairs")]
    OddHead {
        /// Elements of a head.
        head_dim: usize,
    },
    /// Tensor data alignment that is no power of two from 8 up.
    #[error("general.alignment is {alignment} and should be a power of two of at least 8")]
    Alignment {
        /// The file's alignment.
        alignment: u64,
    },
    /// Too many dimensions, or none.
    #[error("tensor {name:?} has {dimensions} dimensions and should have 1 to 4")]
    Dimensions {
        /// The tensor.
        name: String,
        /// Its dimensions.
        dimensions: u32,
    },
    /// A tensor without elements.
    #[error("tensor {name:?} has a dimension of 0")]
    ZeroDimension {
        /// The tensor.
        name: String,
    },
    /// More elements than memory has addresses.
    #[error("tensor {name:?} has dimensions whose product overflows")]
    ShapeOverflow {
        /// The tensor.
        name: String,
    },
    /// A way of storing elements that is not read.
    #[error(
        "tensor {name:?} is stored as {}, and only {} are read: convert or quantise the model to one of them",
        type_name(*.code),
        Encoding::LIST
    )]
    UnsupportedTensorType {
        /// The tensor.
        name: String,
        /// ggml's type code.
        code: u32,
    },
    /// Rows that are no multiple of a quantisation block.
    #[error("tensor {name:?} has rows of {row} elements, no multiple of its blocks of {block}")]
    PartialBlock {
        /// The tensor.
        name: String,
        /// Elements of a row.
        row: u64,
        /// Elements of a block.
        block: usize,
    },
    /// A tensor that does not begin where the alignment says.
    #[error("tensor {name:?} begins at offset {offset}, no multiple of the alignment {alignment}")]
    Misaligned {
        /// The tensor.
        name: String,
        /// Its offset from the start of the tensor data.
        offset: u64,
        /// The file's alignment.
        alignment: usize,
    },
    /// A tensor that reaches past the end of the file.
    #[error(
        "truncated: tensor {name:?} has {length} bytes at offset {offset} of the data that begins at byte {data}, but the file ends at byte {size}"
    )]
    PastEnd {
        /// The tensor.
        name: String,
        /// Its offset from the start of the tensor data.
        offset: u64,
        /// Its bytes.
        length: u64,
        /// Where tensor data begins.
        data: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// A tensor that is there twice.
    #[error("tensor {name:?} is there twice")]
    DuplicateTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor without which the model cannot run.
    #[error("tensor {name:?} is missing")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor that a plain Llama does not have, so that leaving it out would give wrong text.
    #[error("tensor {name:?} belongs to no plain Llama: the model is of a kind that ihip does not run")]
    UnexpectedTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor whose shape contradicts the metadata.
    #[error("tensor {name:?} has shape {found:?} and should have {wanted:?} (fastest first)")]
    TensorShape {
        /// The tensor.
        name: String,
        /// What the metadata asks for.
        wanted: Vec<usize>,
        /// What it is.
        found: Vec<usize>,
    },
    /// Another model family.
    #[error("a model of architecture {architecture:?}, and only \"llama\" is run")]
    Architecture {
        /// `general.architecture`.
        architecture: String,
    },
    /// Rotary scaling that is not implemented.
    #[error("rotary scaling {scaling:?}, and only \"none\", \"linear\" and Llama 3's factors are implemented")]
    RopeScaling {
        /// `llama.rope.scaling.type`.
        scaling: String,
    },
    /// Lists of the tokenizer that do not describe the same vocabulary.
    #[error("the tokenizer's {what} has {found} entries, and the model has {vocabulary} tokens")]
    Vocabulary {
        /// The list.
        what: &'static str,
        /// Its entries.
        found: usize,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// A tokenizer of another family.
    #[error("a tokenizer of model {model:?}, and only \"gpt2\" (byte-level BPE) is implemented")]
    TokenizerModel {
        /// `tokenizer.ggml.model`.
        model: String,
    },
    /// A way of splitting text into words that is not known.
    #[error("a tokenizer with pre-tokenizer {name:?}, and only {known} are known")]
    PreTokenizer {
        /// `tokenizer.ggml.pre`.
        name: String,
        /// The known names.
        known: String,
    },
    /// A merge that is not two tokens.
    #[error("merge {index} of the tokenizer is {merge:?} and should be two tokens that join to a third")]
    Merge {
        /// Its place in the list.
        index: usize,
        /// What is there.
        merge: String,
    },
    /// A token that is there twice.
    #[error("token {token:?} of the vocabulary is there twice, as {first} and as {second}")]
    DuplicateToken {
        /// The token.
        token: String,
        /// Its first id.
        first: u32,
        /// Its second id.
        second: u32,
    },
    /// A chat template is asked for, and the file has none.
    #[error("the model has no chat template: leave --chat out")]
    NoChatTemplate,
    /// A special token's id outside the vocabulary.
    #[error("metadata key {key:?} names token {id}, but the vocabulary has {vocabulary} tokens")]
    TokenId {
        /// The key.
        key: &'static str,
        /// The id.
        id: usize,
        /// Tokens of the vocabulary.
        vocabulary: usize,
    },
}
