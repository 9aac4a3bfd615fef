//! The tables: what is kept, in one file or in memory. Knows neither time nor threads.
//!
//! Invariant: a change is applied whole or not at all, and once [`Store::apply`] returns it is there whatever happens to
//! the machine. A value that cannot be read as what it must be is an error, never a value left out.

use std::collections::BTreeMap;

use bytes::Bytes;
use redb::{
    Database, Durability, ReadableDatabase as _, ReadableTable as _, StorageBackend,
    TableDefinition,
};

use super::cipher::{Cipher, SALT_BYTES, Secret, salt};
use super::clock::Seen;
use super::error::{SpoolError, storage};
use super::record::Header;
use super::schema::{self, SCHEMA};
use super::walked::Walked;

/// Bytes of records that are copied to another file in one step.
const COPIED_BYTES: u64 = 1 << 20;

/// Pages that redb may keep in memory.
pub(super) const CACHE_BYTES: usize = 1 << 20;

/// Largest number of a record: no spool gets there, and there are others after it.
const NUMBER_MAX: u64 = u64::MAX / 2;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const HEADERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("headers");
const REQUESTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("requests");
const ANSWERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("answers");

/// The tables' names in what is sealed.
const OF_META: u8 = 0;
const OF_HEADERS: u8 = 1;
const OF_REQUESTS: u8 = 2;
const OF_ANSWERS: u8 = 3;

/// What a file with the right key opens to.
const CHECK: &[u8] = b"andon spool";

/// A change.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// A record is put or replaced; what was asked and answered stays as it is where it is `None`.
    Put {
        /// Its number.
        number: u64,
        /// What it says.
        header: Box<Header>,
        /// What was asked.
        request: Option<Bytes>,
        /// What was answered.
        answer: Option<Bytes>,
    },
    /// The answer of a record is taken back.
    Unanswer(u64),
    /// A record is dropped.
    Drop(u64),
}

/// The open tables.
#[derive(Debug)]
pub(super) struct Store {
    database: Database,
    cipher: Option<Cipher>,
}

impl Store {
    /// Opens what a backend holds, all of which is compared with its checksums; an empty one is filled with the tables.
    ///
    /// # Errors
    /// A later schema, a wrong key, damage, or what the backend says.
    pub(super) fn open(
        backend: impl StorageBackend,
        secret: Option<&Secret>,
    ) -> Result<Store, SpoolError> {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(Walked(backend))
            .map_err(storage)?;
        let mut store = Store {
            database,
            cipher: None,
        };
        match store.meta("schema")? {
            None => store.begin(secret)?,
            Some(bytes) => {
                let bytes = <[u8; 4]>::try_from(bytes.as_slice())
                    .map_err(|_| SpoolError::Damaged("its schema is no number".to_owned()))?;
                store.unlock(secret)?;
                store.migrate(u32::from_le_bytes(bytes))?;
            }
        }
        Ok(store)
    }

    /// Writes an empty spool.
    fn begin(&mut self, secret: Option<&Secret>) -> Result<(), SpoolError> {
        let mut meta = vec![("schema", SCHEMA.to_le_bytes().to_vec())];
        if let Some(secret) = secret {
            let salt = salt()?;
            let cipher = Cipher::new(secret, &salt);
            meta.push(("salt", salt.to_vec()));
            meta.push(("check", cipher.seal(OF_META, 0, CHECK)?));
            self.cipher = Some(cipher);
        }
        let write = self.database.begin_write().map_err(storage)?;
        {
            let mut table = write.open_table(META).map_err(storage)?;
            for (name, value) in &meta {
                table.insert(*name, value.as_slice()).map_err(storage)?;
            }
            write.open_table(HEADERS).map_err(storage)?;
            write.open_table(REQUESTS).map_err(storage)?;
            write.open_table(ANSWERS).map_err(storage)?;
        }
        write.commit().map_err(storage)
    }

    fn unlock(&mut self, secret: Option<&Secret>) -> Result<(), SpoolError> {
        let Some(salt) = self.meta("salt")? else {
            // Written in the clear. Whoever sets a key has the file written anew; see `file`.
            return Ok(());
        };
        let secret = secret.ok_or(SpoolError::NoKey)?;
        if salt.len() != SALT_BYTES {
            return Err(SpoolError::Damaged("its salt is none".to_owned()));
        }
        let cipher = Cipher::new(secret, &salt);
        let check = self.meta("check")?.unwrap_or_default();
        if !matches!(cipher.open(OF_META, 0, &check), Ok(found) if found == CHECK) {
            return Err(SpoolError::WrongKey);
        }
        self.cipher = Some(cipher);
        Ok(())
    }

    /// Brings an older schema to this one.
    fn migrate(&self, found: u32) -> Result<(), SpoolError> {
        match found {
            SCHEMA => Ok(()),
            later if later > SCHEMA => Err(SpoolError::Newer {
                found,
                known: SCHEMA,
            }),
            1 | 2 => {
                let seen: schema::Moment = match self.meta("seen")? {
                    None => schema::Moment::default(),
                    Some(bytes) => decode(&bytes)?,
                };
                let change = |header| schema::header(found, header, seen);
                self.each_header(SCHEMA, &seen.seen(), change)
            }
            _ => Err(SpoolError::Damaged(format!("there is no schema {found}"))),
        }
    }

    /// Changes every header's bytes, what is noted of the clock and the number of the schema, as one.
    fn each_header(
        &self,
        schema: u32,
        seen: &impl serde::Serialize,
        change: impl Fn(Vec<u8>) -> Result<Vec<u8>, SpoolError>,
    ) -> Result<(), SpoolError> {
        let write = self.database.begin_write().map_err(storage)?;
        {
            let mut table = write.open_table(HEADERS).map_err(storage)?;
            let mut changed = Vec::new();
            for entry in table.iter().map_err(storage)? {
                let (number, value) = entry.map_err(storage)?;
                let number = number.value();
                let header = change(self.unseal(OF_HEADERS, number, value.value())?)?;
                changed.push((number, self.seal(OF_HEADERS, number, &header)?));
            }
            for (number, value) in &changed {
                table.insert(*number, value.as_slice()).map_err(storage)?;
            }
            let mut meta = write.open_table(META).map_err(storage)?;
            let schema = schema.to_le_bytes();
            meta.insert("schema", schema.as_slice()).map_err(storage)?;
            let seen = encode(seen)?;
            meta.insert("seen", seen.as_slice()).map_err(storage)?;
        }
        write.commit().map_err(storage)
    }

    /// Whether values are sealed.
    pub(super) fn is_encrypted(&self) -> bool {
        self.cipher.is_some()
    }

    fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, SpoolError> {
        let read = self.database.begin_read().map_err(storage)?;
        let table = match read.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table.map_err(storage)?,
        };
        let value = table.get(name).map_err(storage)?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    /// What was noted of the clock last.
    ///
    /// # Errors
    /// Damage, or what the backend says.
    pub(super) fn seen(&self) -> Result<Seen, SpoolError> {
        match self.meta("seen")? {
            None => Ok(Seen::default()),
            Some(bytes) => decode(&bytes),
        }
    }

    /// Applies changes as one, in this order, and notes the clock. They are on the disk when this returns.
    ///
    /// # Errors
    /// What the backend says. The changes may then be there or not: they are to be applied again after the store was
    /// opened anew, which does no harm if they are.
    pub(super) fn apply(&mut self, changes: &[Change], seen: &Seen) -> Result<(), SpoolError> {
        self.apply_as(Durability::Immediate, changes, seen)
    }

    fn apply_as(
        &mut self,
        durability: Durability,
        changes: &[Change],
        seen: &Seen,
    ) -> Result<(), SpoolError> {
        let mut write = self.database.begin_write().map_err(storage)?;
        write
            .set_durability(durability)
            .map_err(|error| SpoolError::Storage(error.to_string()))?;
        {
            let mut headers = write.open_table(HEADERS).map_err(storage)?;
            let mut requests = write.open_table(REQUESTS).map_err(storage)?;
            let mut answers = write.open_table(ANSWERS).map_err(storage)?;
            for change in changes {
                match change {
                    Change::Put {
                        number,
                        header,
                        request,
                        answer,
                    } => {
                        let value = self.seal(OF_HEADERS, *number, &encode(header)?)?;
                        headers.insert(*number, value.as_slice()).map_err(storage)?;
                        if let Some(request) = request {
                            let value = self.seal(OF_REQUESTS, *number, request)?;
                            requests
                                .insert(*number, value.as_slice())
                                .map_err(storage)?;
                        }
                        if let Some(answer) = answer {
                            let value = self.seal(OF_ANSWERS, *number, answer)?;
                            answers.insert(*number, value.as_slice()).map_err(storage)?;
                        }
                    }
                    Change::Unanswer(number) => {
                        answers.remove(*number).map_err(storage)?;
                    }
                    Change::Drop(number) => {
                        headers.remove(*number).map_err(storage)?;
                        requests.remove(*number).map_err(storage)?;
                        answers.remove(*number).map_err(storage)?;
                    }
                }
            }
            let mut meta = write.open_table(META).map_err(storage)?;
            let seen = encode(seen)?;
            meta.insert("seen", seen.as_slice()).map_err(storage)?;
        }
        write.commit().map_err(storage)
    }

    /// Every record's header, by number.
    ///
    /// # Errors
    /// Damage, or what the backend says.
    pub(super) fn headers(&self) -> Result<BTreeMap<u64, Header>, SpoolError> {
        let read = self.database.begin_read().map_err(storage)?;
        let table = read.open_table(HEADERS).map_err(storage)?;
        let mut headers = BTreeMap::new();
        for entry in table.iter().map_err(storage)? {
            let (number, value) = entry.map_err(storage)?;
            let number = number.value();
            if number > NUMBER_MAX {
                return Err(SpoolError::Damaged(format!("no record is number {number}")));
            }
            let value = self.unseal(OF_HEADERS, number, value.value())?;
            headers.insert(number, decode(&value)?);
        }
        Ok(headers)
    }

    /// What was asked.
    ///
    /// # Errors
    /// Damage, or what the backend says.
    pub(super) fn request(&self, number: u64) -> Result<Option<Bytes>, SpoolError> {
        self.value(REQUESTS, OF_REQUESTS, number)
    }

    /// What was answered.
    ///
    /// # Errors
    /// Damage, or what the backend says.
    pub(super) fn answer(&self, number: u64) -> Result<Option<Bytes>, SpoolError> {
        self.value(ANSWERS, OF_ANSWERS, number)
    }

    fn value(
        &self,
        table: TableDefinition<'_, u64, &[u8]>,
        name: u8,
        number: u64,
    ) -> Result<Option<Bytes>, SpoolError> {
        let read = self.database.begin_read().map_err(storage)?;
        let table = read.open_table(table).map_err(storage)?;
        match table.get(number).map_err(storage)? {
            None => Ok(None),
            Some(value) => Ok(Some(self.unseal(name, number, value.value())?.into())),
        }
    }

    /// Copies everything into an empty store.
    ///
    /// # Errors
    /// What either backend says.
    pub(super) fn copy_to(&self, to: &mut Store) -> Result<(), SpoolError> {
        let seen = self.seen()?;
        // So many bytes at a time that memory holds them; one sync is enough for all, at the end.
        let (mut puts, mut bytes) = (Vec::new(), 0);
        for (number, header) in self.headers()? {
            bytes += header.bytes();
            puts.push(Change::Put {
                number,
                header: Box::new(header),
                request: self.request(number)?,
                answer: self.answer(number)?,
            });
            if bytes >= COPIED_BYTES {
                to.apply_as(Durability::None, &puts, &seen)?;
                puts.clear();
                bytes = 0;
            }
        }
        to.apply(&puts, &seen)
    }

    fn seal(&self, table: u8, number: u64, value: &[u8]) -> Result<Vec<u8>, SpoolError> {
        match &self.cipher {
            None => Ok(value.to_vec()),
            Some(cipher) => cipher.seal(table, number, value),
        }
    }

    fn unseal(&self, table: u8, number: u64, value: &[u8]) -> Result<Vec<u8>, SpoolError> {
        match &self.cipher {
            None => Ok(value.to_vec()),
            Some(cipher) => cipher.open(table, number, value),
        }
    }

    /// Makes the file one of an earlier schema, with these headers and this note of the clock.
    #[cfg(test)]
    pub(super) fn pretend_earlier(&self, schema: u32, header: &[u8], seen: &[u8]) {
        let header = |_| Ok(header.to_vec());
        self.each_header(schema, &(), header).expect("changed");
        let write = self.database.begin_write().expect("begun");
        let mut table = write.open_table(META).expect("opened");
        table.insert("seen", seen).expect("put");
        drop(table);
        write.commit().expect("committed");
    }

    /// Makes the file that of another schema, as a later version would.
    #[cfg(test)]
    pub(super) fn pretend_schema(&self, schema: u32) {
        let write = self.database.begin_write().expect("begun");
        let mut table = write.open_table(META).expect("opened");
        let bytes = schema.to_le_bytes();
        table.insert("schema", bytes.as_slice()).expect("put");
        drop(table);
        write.commit().expect("committed");
    }
}

pub(super) fn encode(value: &impl serde::Serialize) -> Result<Vec<u8>, SpoolError> {
    postcard::to_stdvec(value)
        .map_err(|error| SpoolError::Storage(format!("a record cannot be encoded: {error}")))
}

pub(super) fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, SpoolError> {
    postcard::from_bytes(bytes)
        .map_err(|error| SpoolError::Damaged(format!("a record reads as none: {error}")))
}
