//! GGUF files made in memory.

#![allow(dead_code, reason = "each test program uses a part of it")]

/// Writes a GGUF file field by field; it checks nothing, so it can write broken ones.
#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    metadata_count: u64,
    metadata: Vec<u8>,
    tensor_count: u64,
    tensors: Vec<u8>,
    data: Vec<u8>,
}

pub(crate) const U8: u32 = 0;
pub(crate) const U32: u32 = 4;
pub(crate) const I32: u32 = 5;
pub(crate) const F32: u32 = 6;
pub(crate) const BOOL: u32 = 7;
pub(crate) const STRING: u32 = 8;
pub(crate) const ARRAY: u32 = 9;

pub(crate) fn string(text: &[u8]) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text);
    bytes
}

pub(crate) fn array(element_type: u32, length: u64, elements: &[u8]) -> Vec<u8> {
    let mut bytes = element_type.to_le_bytes().to_vec();
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(elements);
    bytes
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self {
            version: 3,
            alignment: 32,
            metadata_count: 0,
            metadata: Vec::new(),
            tensor_count: 0,
            tensors: Vec::new(),
            data: Vec::new(),
        }
    }

    pub(crate) fn raw(&mut self, key: &[u8], value_type: u32, value: &[u8]) -> &mut Self {
        self.metadata_count += 1;
        self.metadata.extend(string(key));
        self.metadata.extend_from_slice(&value_type.to_le_bytes());
        self.metadata.extend_from_slice(value);
        self
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.raw(key.as_bytes(), U32, &value.to_le_bytes())
    }

    pub(crate) fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.raw(key.as_bytes(), BOOL, &[u8::from(value)])
    }

    pub(crate) fn str(&mut self, key: &str, value: &str) -> &mut Self {
        self.raw(key.as_bytes(), STRING, &string(value.as_bytes()))
    }

    pub(crate) fn strs<T: AsRef<str>>(&mut self, key: &str, values: &[T]) -> &mut Self {
        let elements: Vec<u8> = values
            .iter()
            .flat_map(|value| string(value.as_ref().as_bytes()))
            .collect();
        self.raw(
            key.as_bytes(),
            ARRAY,
            &array(STRING, values.len() as u64, &elements),
        )
    }

    pub(crate) fn i32s(&mut self, key: &str, values: &[i32]) -> &mut Self {
        let elements: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.raw(
            key.as_bytes(),
            ARRAY,
            &array(I32, values.len() as u64, &elements),
        )
    }

    pub(crate) fn f32s(&mut self, key: &str, values: &[f32]) -> &mut Self {
        let elements: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let value = array(F32, values.len() as u64, &elements);
        self.raw(key.as_bytes(), ARRAY, &value)
    }

    pub(crate) fn u8s(&mut self, key: &str, values: &[u8]) -> &mut Self {
        let value = array(U8, values.len() as u64, values);
        self.raw(key.as_bytes(), ARRAY, &value)
    }

    /// An entry of the directory alone.
    pub(crate) fn entry(
        &mut self,
        name: &[u8],
        dims: &[u64],
        ggml_type: u32,
        offset: u64,
    ) -> &mut Self {
        self.tensor_count += 1;
        self.tensors.extend(string(name));
        self.tensors
            .extend_from_slice(&(dims.len() as u32).to_le_bytes());
        for dim in dims {
            self.tensors.extend_from_slice(&dim.to_le_bytes());
        }
        self.tensors.extend_from_slice(&ggml_type.to_le_bytes());
        self.tensors.extend_from_slice(&offset.to_le_bytes());
        self
    }

    /// A tensor and its data, placed after what is there.
    pub(crate) fn tensor(
        &mut self,
        name: &str,
        dims: &[u64],
        ggml_type: u32,
        data: &[u8],
    ) -> &mut Self {
        let offset = self.data.len().next_multiple_of(self.alignment);
        self.data.resize(offset, 0);
        self.data.extend_from_slice(data);
        self.entry(name.as_bytes(), dims, ggml_type, offset as u64)
    }

    pub(crate) fn data(&mut self, bytes: usize) -> &mut Self {
        self.data.resize(bytes, 0);
        self
    }

    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&self.tensor_count.to_le_bytes());
        bytes.extend_from_slice(&self.metadata_count.to_le_bytes());
        bytes.extend_from_slice(&self.metadata);
        bytes.extend_from_slice(&self.tensors);
        if !self.data.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
            bytes.extend_from_slice(&self.data);
        }
        bytes
    }
}
