//! The container: metadata and tensor directory of a GGUF file, version 2 or 3, little endian.
//!
//! Every length, count, offset and product read from the file is compared with the file's size before anything is
//! allocated for it; arrays stay in the file and are read where they are used.

use std::collections::BTreeMap;
use std::ops::Range;

use super::blocks::Encoding;
use super::malformed::{Malformed, Result};

/// A GGUF file whose directory has been checked; `B` holds its bytes.
#[derive(Debug)]
pub struct Gguf<B> {
    bytes: B,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Tensor>,
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer type.
    Unsigned(u64),
    /// Any signed integer type.
    Signed(i64),
    /// Either floating-point type.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    String(String),
    /// A list of one element type.
    Array(Array),
}

impl Value {
    /// What the value is, in words for messages.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an unsigned integer",
            Self::Signed(_) => "a signed integer",
            Self::Float(_) => "a number with a fraction",
            Self::Bool(_) => "a boolean",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
        }
    }
}

/// Where an array lies in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    element: ElementType,
    count: usize,
    bytes: Range<usize>,
}

/// Type codes of metadata values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ElementType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ElementType {
    const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of one value; for a string or an array, of the shortest one.
    const fn least_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

/// One tensor of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Extents, the fastest-varying first, as the file has them: a matrix is `[columns, rows]`.
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub encoding: Encoding,
    bytes: Range<usize>,
}

impl Tensor {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: usize = 32;
const MAX_DIMENSIONS: u32 = 4;

impl<B: AsRef<[u8]>> Gguf<B> {
    /// Checks the directory of the file in `bytes`. Tensor data is not read.
    ///
    /// # Errors
    /// [`Malformed`] with the byte offset or name of the first thing that is wrong.
    pub fn parse(bytes: B) -> Result<Self> {
        let mut cursor = Cursor::new(bytes.as_ref());
        let (tensor_count, key_count) = header(&mut cursor)?;
        let metadata = metadata(&mut cursor, key_count)?;
        let tensors = directory(&mut cursor, tensor_count, alignment(&metadata)?)?;
        Ok(Self { bytes, metadata, tensors })
    }

    /// The tensors by name.
    #[must_use]
    pub const fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// [`Malformed::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Malformed::MissingTensor { name: name.into() })
    }

    /// The stored bytes of a tensor of this file.
    #[must_use]
    pub fn tensor_bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.bytes.as_ref()[tensor.bytes.clone()]
    }

    /// The value of `key`, if the file has it.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The non-negative integer at `key`, if the file has the key.
    ///
    /// # Errors
    /// [`Malformed::KeyType`] when it is something else or does not fit.
    pub fn unsigned(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a non-negative integer", |value| match *value {
            Value::Unsigned(number) => usize::try_from(number).ok(),
            Value::Signed(number) => usize::try_from(number).ok(),
            _ => None,
        })
    }

    /// The number at `key`, if the file has the key.
    ///
    /// # Errors
    /// [`Malformed::KeyType`] when it is something else.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| match *value {
            Value::Float(number) => Some(number),
            _ => None,
        })
    }

    /// The boolean at `key`, if the file has the key.
    ///
    /// # Errors
    /// [`Malformed::KeyType`] when it is something else.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a boolean", |value| match *value {
            Value::Bool(boolean) => Some(boolean),
            _ => None,
        })
    }

    /// The string at `key`, if the file has the key.
    ///
    /// # Errors
    /// [`Malformed::KeyType`] when it is something else.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| match value {
            Value::String(string) => Some(string.as_str()),
            _ => None,
        })
    }

    /// The strings of the array at `key`, if the file has the key.
    ///
    /// # Errors
    /// [`Malformed::KeyType`] when it is something else.
    pub fn strings(&self, key: &str) -> Result<Option<impl ExactSizeIterator<Item = &str>>> {
        let Some(array) = self.array(key, "an array of strings", |element| element == ElementType::String)? else {
            return Ok(None);
        };
        let mut rest = &self.bytes.as_ref()[array.bytes.clone()];
        Ok(Some((0..array.count).map(move |_| {
            let (length, after) = rest.split_first_chunk().expect("lengths were checked by parse");
            let (string, after) = after.split_at(u64::from_le_bytes(*length) as usize);
            rest = after;
            std::str::from_utf8(string).expect("strings were checked by parse")
        })))
    }

    /// The 32-bit integers of the array at `key`, if the file has the key.
    ///
    /// # Errors
    /// [`Malformed::KeyType`] when it is something else.
    pub fn integers(&self, key: &str) -> Result<Option<impl ExactSizeIterator<Item = i32>>> {
        let wanted = |element| matches!(element, ElementType::I32 | ElementType::U32);
        let Some(array) = self.array(key, "an array of 32-bit integers", wanted)? else {
            return Ok(None);
        };
        let (integers, _) = self.bytes.as_ref()[array.bytes.clone()].as_chunks();
        Ok(Some(integers.iter().map(|bytes| i32::from_le_bytes(*bytes))))
    }

    fn array(&self, key: &str, wanted: &'static str, element: impl Fn(ElementType) -> bool) -> Result<Option<&Array>> {
        self.typed(key, wanted, |value| match value {
            Value::Array(array) if element(array.element) => Some(array),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        let mismatch = || Malformed::KeyType { key: key.into(), wanted, found: value.kind() };
        convert(value).map(Some).ok_or_else(mismatch)
    }
}

/// Reads the bytes of a file front to back and never past their end.
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    fn take(&mut self, length: u64, what: &'static str) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.position..];
        match usize::try_from(length) {
            Ok(length) if length <= rest.len() => {
                self.position += length;
                Ok(&rest[..length])
            }
            _ => Err(Malformed::Truncated {
                what,
                offset: self.position as u64,
                needed: length,
                size: self.bytes.len() as u64,
            }),
        }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let bytes = self.take(N as u64, what)?;
        Ok(bytes.try_into().expect("take returns the length it was asked for"))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string(&mut self, what: &'static str) -> Result<&'a str> {
        let length = self.u64(what)?;
        let offset = self.position as u64;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| Malformed::NotUtf8 { what, offset })
    }

    fn element_type(&mut self, key: &str) -> Result<ElementType> {
        let code = self.u32("the type of a metadata value")?;
        ElementType::from_code(code).ok_or_else(|| Malformed::UnknownValueType { key: key.into(), code })
    }

    /// Refuses a count of things that cannot be in the rest of the file.
    fn count(&self, count: u64, least_bytes: usize, what: &'static str) -> Result<usize> {
        let rest = self.bytes.len() - self.position;
        match usize::try_from(count) {
            Ok(fits) if fits <= rest / least_bytes => Ok(fits),
            _ => Err(Malformed::Count { what, count, rest: rest as u64 }),
        }
    }
}

/// Number of tensors and of metadata keys.
fn header(cursor: &mut Cursor<'_>) -> Result<(u64, u64)> {
    let start = &cursor.bytes[..cursor.bytes.len().min(MAGIC.len())];
    if start != &MAGIC[..start.len()] || start.is_empty() {
        return Err(Malformed::NotGguf { size: cursor.bytes.len() as u64 });
    }
    cursor.take(MAGIC.len() as u64, "the magic number")?;
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => {}
        _ if (1..=3).contains(&version.swap_bytes()) => return Err(Malformed::BigEndian),
        _ => return Err(Malformed::Version { version }),
    }
    Ok((cursor.u64("the number of tensors")?, cursor.u64("the number of metadata keys")?))
}

fn metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, Value>> {
    // An entry has at least a key of one byte, a type and one byte.
    let count = cursor.count(count, 14, "metadata keys")?;
    let mut metadata = BTreeMap::new();
    for number in 0..count {
        let key = cursor.string("a metadata key")?;
        if key.is_empty() {
            return Err(Malformed::EmptyKey { number: number as u64 });
        }
        let element = cursor.element_type(key)?;
        let value = match element {
            ElementType::Array => Value::Array(array(cursor, key)?),
            element => scalar(cursor, key, element)?,
        };
        if metadata.insert(key.to_owned(), value).is_some() {
            return Err(Malformed::DuplicateKey { key: key.into() });
        }
    }
    Ok(metadata)
}

fn scalar(cursor: &mut Cursor<'_>, key: &str, element: ElementType) -> Result<Value> {
    const WHAT: &str = "a metadata value";
    Ok(match element {
        ElementType::U8 => Value::Unsigned(u8::from_le_bytes(cursor.array(WHAT)?).into()),
        ElementType::I8 => Value::Signed(i8::from_le_bytes(cursor.array(WHAT)?).into()),
        ElementType::U16 => Value::Unsigned(u16::from_le_bytes(cursor.array(WHAT)?).into()),
        ElementType::I16 => Value::Signed(i16::from_le_bytes(cursor.array(WHAT)?).into()),
        ElementType::U32 => Value::Unsigned(cursor.u32(WHAT)?.into()),
        ElementType::I32 => Value::Signed(i32::from_le_bytes(cursor.array(WHAT)?).into()),
        ElementType::F32 => Value::Float(f32::from_le_bytes(cursor.array(WHAT)?).into()),
        ElementType::U64 => Value::Unsigned(cursor.u64(WHAT)?),
        ElementType::I64 => Value::Signed(i64::from_le_bytes(cursor.array(WHAT)?)),
        ElementType::F64 => Value::Float(f64::from_le_bytes(cursor.array(WHAT)?)),
        ElementType::Bool => match cursor.array(WHAT)? {
            [byte @ (0 | 1)] => Value::Bool(byte == 1),
            [byte] => {
                return Err(Malformed::Boolean { key: key.into(), byte });
            }
        },
        ElementType::String => Value::String(cursor.string(WHAT)?.to_owned()),
        ElementType::Array => return Err(Malformed::NestedArray { key: key.into() }),
    })
}

fn array(cursor: &mut Cursor<'_>, key: &str) -> Result<Array> {
    let element = cursor.element_type(key)?;
    if element == ElementType::Array {
        return Err(Malformed::NestedArray { key: key.into() });
    }
    let count = cursor.u64("the length of an array")?;
    let count = cursor.count(count, element.least_bytes(), "array elements")?;
    let start = cursor.position;
    if matches!(element, ElementType::String | ElementType::Bool) {
        for _ in 0..count {
            scalar(cursor, key, element)?;
        }
    } else {
        cursor.take((count * element.least_bytes()) as u64, element.name())?;
    }
    Ok(Array { element, count, bytes: start..cursor.position })
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<usize> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::Unsigned(alignment)) => match usize::try_from(alignment) {
            Ok(fits) if fits.is_power_of_two() && fits >= 8 => Ok(fits),
            _ => Err(Malformed::Alignment { alignment }),
        },
        Some(other) => Err(Malformed::KeyType {
            key: "general.alignment".into(),
            wanted: "an unsigned integer",
            found: other.kind(),
        }),
    }
}

fn directory(cursor: &mut Cursor<'_>, count: u64, alignment: usize) -> Result<BTreeMap<String, Tensor>> {
    // An entry has at least an empty name, the number of dimensions, one dimension, a type and an offset.
    let count = cursor.count(count, 32, "tensors")?;
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let name = cursor.string("a tensor name")?;
        let shape = shape(cursor, name)?;
        let code = cursor.u32("a tensor type")?;
        let offset = cursor.u64("a tensor offset")?;
        let encoding =
            Encoding::from_code(code).ok_or_else(|| Malformed::UnsupportedTensorType { name: name.into(), code })?;
        if entries.insert(name.to_owned(), (shape, encoding, offset)).is_some() {
            return Err(Malformed::DuplicateTensor { name: name.into() });
        }
    }
    let size = cursor.bytes.len();
    // Nothing follows the directory of a file that has no tensors, not even padding.
    let data = cursor.position.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    entries
        .into_iter()
        .map(|(name, (shape, encoding, offset))| {
            let elements: usize = shape.iter().product();
            let Some(length) = encoding.stored_bytes(shape[0], elements) else {
                return Err(Malformed::PartialBlock { name, row: shape[0] as u64, block: encoding.block_elements() });
            };
            let start = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
            let end = start.and_then(|start| start.checked_add(length));
            match (start, end) {
                (Some(start), Some(end)) if end <= size => {
                    if !offset.is_multiple_of(alignment as u64) {
                        return Err(Malformed::Misaligned { name, offset, alignment });
                    }
                    Ok((name, Tensor { shape, encoding, bytes: start..end }))
                }
                _ => Err(Malformed::PastEnd {
                    name,
                    offset,
                    length: length as u64,
                    data: data as u64,
                    size: size as u64,
                }),
            }
        })
        .collect()
}

fn shape(cursor: &mut Cursor<'_>, name: &str) -> Result<Vec<usize>> {
    let dimensions = cursor.u32("the number of a tensor's dimensions")?;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(Malformed::Dimensions { name: name.into(), dimensions });
    }
    let mut shape = Vec::new();
    let mut elements = 1_usize;
    for _ in 0..dimensions {
        let extent = cursor.u64("a tensor dimension")?;
        if extent == 0 {
            return Err(Malformed::ZeroDimension { name: name.into() });
        }
        let product = usize::try_from(extent).ok().and_then(|extent| elements.checked_mul(extent));
        // An element takes at most 4 bytes, and its f32 exactly 4.
        elements = product
            .filter(|product| *product <= isize::MAX as usize / 4)
            .ok_or_else(|| Malformed::ShapeOverflow { name: name.into() })?;
        shape.push(extent as usize);
    }
    Ok(shape)
}
