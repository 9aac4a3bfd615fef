//! GGUF files of metadata alone, written field by field.

#[derive(Default)]
pub(crate) struct Draft {
    pairs: u64,
    metadata: Vec<u8>,
}

impl Draft {
    pub(crate) fn put(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.pairs += 1;
        self.metadata.extend(text(key.as_bytes()));
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
    }

    pub(crate) fn bytes(&mut self, key: &str, value: &[u8]) {
        self.put(key, 8, &text(value));
    }

    pub(crate) fn array(&mut self, key: &str, kind: u32, count: usize, elements: &[u8]) {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend((count as u64).to_le_bytes());
        value.extend(elements);
        self.put(key, 9, &value);
    }

    pub(crate) fn texts<T: AsRef<[u8]>>(&mut self, key: &str, values: &[T]) {
        let elements: Vec<u8> = values
            .iter()
            .flat_map(|value| text(value.as_ref()))
            .collect();
        self.array(key, 8, values.len(), &elements);
    }

    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        bytes.extend(self.pairs.to_le_bytes());
        bytes.extend(&self.metadata);
        bytes
    }
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}
