//! How an object gets into a cloud store: create-only, and verified before it is acknowledged.
//!
//! Small objects are one request, sent when the content is complete. Larger ones go up in parts while the caller is
//! still encoding:
//! - straight to their own path, if it belongs to one publisher alone ([`Naming::Unique`]), or if the store completes an
//!   upload only where nothing lies (S3 with `If-None-Match`);
//! - else to a temporary path, from which a create-only copy publishes them.
//!
//! What makes a 2xx mean "durable and right":
//! - S3: every request carries the SHA-256 of its body, which the store checks.
//! - Google, Azure: the MD5 that the store reports is compared with ours; where it reports none, the object is read
//!   back and compared.
//!
//! What must hold: memory stays small, and nothing stays behind when an upload is dropped (a killed process leaves a temporary object or an unfinished multipart upload, both invisible to listings).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use md5::Digest as _;
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use tokio::task::JoinHandle;

use super::cloud::{CloudStore, STALL, STALL_OF_COPY};
use super::cloud_error::{classify, is_absent};
use super::connect::Provider;
use super::directory_publish::RawPublished;
use super::naming::{RawObject, TEMPORARY_FOLDER, random_hex};
use super::retry::{Failed, Retries, retried};
use super::transport::{Extra, Fault, Seen, watched};
use super::upload_buffer::Buffer;
use super::{Naming, Patience, RepositoryError};
use crate::format::marker::CreateOnly;

/// What S3 and Google take as the smallest part of a multipart upload.
const PART: usize = 5 << 20;
/// What one object holds in memory at most. One that is expected to be small is held until it is complete and sent as one request, if it
/// really comes out no larger than this: half of a segment and a little, which is what text leaves of it. More would not leave a push of a segment within its 32 MiB.
pub const MOST_HELD: usize = 17 << 19;
/// A segment of the usual 16 MiB, with room for its envelope.
const SMALL: u64 = 20 << 20;
/// How long cleaning up after oneself may take.
const PATIENCE_OF_CLEANING: Duration = Duration::from_secs(5);
/// What is read back at once to be compared.
const READ_BACK: usize = 4 << 20;

/// An object on its way into a cloud store.
pub(super) struct CloudUpload {
    store: CloudStore,
    key: String,
    naming: Naming,
    create_only: CreateOnly,
    patience: Patience,
    /// Buffered bytes above which parts go out.
    hold: usize,
    buffer: Buffer,
    multipart: Option<Multipart>,
}

/// A multipart upload under way.
struct Multipart {
    /// Where it goes: the object's path or a temporary one.
    path: String,
    publishing: Publishing,
    place: Path,
    id: String,
    sent: usize,
    stored: Vec<PartId>,
    in_flight: VecDeque<JoinHandle<Result<StoredPart, RepositoryError>>>,
    length: u64,
    content: blake3::Hasher,
    verified: Verified,
}

/// What makes a large object visible under its path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Publishing {
    ByCompletion(Extra),
    ByCopy,
}

struct StoredPart {
    id: PartId,
    verified: Verified,
}

/// Whether the store has said that it got what was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verified {
    ByStore,
    NotYet,
}

impl CloudStore {
    /// Begins an object whose path will be `key`, perhaps with a suffix.
    pub(super) fn begin(
        &self,
        key: &str,
        naming: Naming,
        create_only: CreateOnly,
        expected_length: u64,
        patience: Patience,
    ) -> CloudUpload {
        let is_small = expected_length <= SMALL;
        CloudUpload {
            store: self.clone(),
            key: key.to_owned(),
            naming,
            create_only,
            patience,
            hold: if is_small { MOST_HELD } else { PART },
            buffer: Buffer::new(&self.shared.blocks),
            multipart: None,
        }
    }

    /// Publishes a small object whole.
    pub(super) fn put(
        &self,
        path: &str,
        bytes: &[u8],
        create_only: CreateOnly,
        patience: Patience,
    ) -> Result<RawPublished, RepositoryError> {
        self.put_payload(path, &PutPayload::from(bytes.to_vec()), create_only, patience)
    }

    fn put_payload(
        &self,
        path: &str,
        payload: &PutPayload,
        create_only: CreateOnly,
        patience: Patience,
    ) -> Result<RawPublished, RepositoryError> {
        let place = self.place("publish", path)?;
        let mode = match create_only {
            CreateOnly::Enforced => PutMode::Create,
            CreateOnly::Suffixed => PutMode::Overwrite,
        };
        let (mut may_lie_there, mut was_sent) = (false, false);
        retried("publish", path, patience, |deadline| {
            // What lies there is what an earlier attempt sent, if its answer was lost.
            let found = |object: RawObject| match was_sent && self.holds(&place, payload, deadline, path)? {
                true => Ok(RawPublished::Created),
                false => Ok(RawPublished::Exists(object)),
            };
            // A store that refuses from the head alone may close the connection on the body, so that its answer is lost
            // every time: an object that is there would be sent again and again until the deadline.
            if may_lie_there
                && create_only == CreateOnly::Enforced
                && let Ok(Some(object)) = self.find_once(path, deadline)
            {
                return found(object);
            }
            let options = PutOptions { mode: mode.clone(), ..PutOptions::default() };
            let put = self.objects().put_opts(&place, payload.clone(), options);
            match self.attempt(deadline, STALL, put) {
                Ok((_, seen)) => {
                    if self.verify(payload, &seen) == Verified::NotYet {
                        self.compare_payload(path, &place, payload, deadline)?;
                    }
                    Ok(RawPublished::Created)
                }
                Err(Fault::Store { error, .. }) if is_taken(&error) => {
                    may_lie_there = true;
                    self.taken(path, deadline).and_then(found)
                }
                Err(fault) => {
                    may_lie_there = may_be_taken(&fault);
                    was_sent = true;
                    Err(classify(self.request("publish", path), fault))
                }
            }
        })
    }

    /// What lies where something is said to lie. A conflict is also answered when two requests only crossed.
    fn taken(&self, path: &str, deadline: Instant) -> Result<RawObject, Failed> {
        match self.find_once(path, deadline)? {
            Some(object) => Ok(object),
            None => Err(Failed::again("the store answers that something lies there, but nothing does")),
        }
    }

    /// Whether the store's answer proves that it has what was sent.
    fn verify(&self, payload: &PutPayload, seen: &Seen) -> Verified {
        match (self.shared.client.provider, seen.md5) {
            (Provider::S3, _) => Verified::ByStore,
            (Provider::Google | Provider::Azure, Some(md5)) if md5 == md5_of(payload) => Verified::ByStore,
            (Provider::Google | Provider::Azure, _) => Verified::NotYet,
        }
    }

    /// Reads a small object back; one that is not what was sent is removed again, so that it can be sent again.
    fn compare_payload(
        &self,
        path: &str,
        place: &Path,
        payload: &PutPayload,
        deadline: Instant,
    ) -> Result<(), Failed> {
        if self.holds(place, payload, deadline, path)? {
            return Ok(());
        }
        self.delete(path, Patience::Until(deadline))?;
        Err(Failed::again("what the store kept is not what was sent; it was removed"))
    }

    /// Whether the small object that lies there is this one, to the byte.
    fn holds(
        &self,
        place: &Path,
        payload: &PutPayload,
        deadline: Instant,
        path: &str,
    ) -> Result<bool, Failed> {
        let compare = async {
            let stored = self.objects().get_opts(place, GetOptions::default()).await?;
            if stored.meta.size != payload.content_length() as u64 {
                return Ok(false);
            }
            let mut stored = stored.into_stream();
            let mut expected = payload.iter().flat_map(|block| block.iter().copied());
            while let Some(piece) = stored.try_next().await? {
                if !piece.iter().all(|byte| expected.next() == Some(*byte)) {
                    return Ok(false);
                }
            }
            Ok(expected.next().is_none())
        };
        let compared = self.attempt(deadline, STALL, compare);
        compared.map(|(same, _)| same).map_err(|fault| classify(self.request("publish", path), fault))
    }

    /// Whether large objects are created exclusively: `path` exists, and must be left alone by an upload in parts.
    pub(super) fn probe_large_objects(
        &self,
        path: &str,
        other: &[u8],
        patience: Patience,
    ) -> Result<CreateOnly, RepositoryError> {
        let mut upload = self.begin(path, Naming::ByStore, CreateOnly::Enforced, u64::MAX, patience);
        upload.write(other)?;
        upload.send_part(PART)?;
        match upload.finish(path)? {
            RawPublished::Created => Ok(CreateOnly::Suffixed),
            RawPublished::Exists(_) => Ok(CreateOnly::Enforced),
        }
    }

    /// Publishes what lies under `from` as `to`.
    fn copy(
        &self,
        from: &str,
        to: &str,
        length: u64,
        create_only: CreateOnly,
        patience: Patience,
    ) -> Result<RawPublished, RepositoryError> {
        let (source, place) = (self.place("publish", from)?, self.place("publish", to)?);
        let mode = match create_only {
            CreateOnly::Enforced => CopyMode::Create,
            CreateOnly::Suffixed => CopyMode::Overwrite,
        };
        let published = retried("publish", to, patience, |deadline| {
            let copy = self.objects().copy_opts(&source, &place, CopyOptions::new().with_mode(mode));
            match self.attempt(deadline, STALL_OF_COPY, copy) {
                Ok(_) => Ok(RawPublished::Created),
                Err(Fault::Store { error, .. }) if is_taken(&error) => {
                    self.taken(to, deadline).map(RawPublished::Exists)
                }
                Err(fault) => Err(classify(self.request("publish", to), fault)),
            }
        })?;
        if published == RawPublished::Created {
            self.await_copy(to, &place, length, patience)?;
        }
        Ok(published)
    }

    /// Azure may answer before a copy is made.
    fn await_copy(
        &self,
        path: &str,
        place: &Path,
        length: u64,
        patience: Patience,
    ) -> Result<(), RepositoryError> {
        retried("publish", path, patience, |deadline| {
            match self.attempt(deadline, STALL, self.objects().head(place)) {
                Ok((_, seen)) if seen.copy_pending => Err(Failed::again("the store is still copying")),
                Ok((meta, _)) if meta.size == length => Ok(()),
                Ok((meta, _)) => {
                    let problem = format!("the store copied {} of {length} bytes", meta.size);
                    Err(self.request("publish", path).damaged(problem).into())
                }
                Err(fault) => Err(classify(self.request("publish", path), fault)),
            }
        })
    }
}

impl CloudUpload {
    /// Takes the next bytes. Waits while as many parts as may be are on their way.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.buffer.push(bytes);
        if self.buffer.length > self.hold {
            self.hold = PART;
            while self.buffer.length > PART {
                self.send_part(PART)?;
            }
        }
        // The next part fills while one is on its way.
        if self.buffer.length + PART > MOST_HELD {
            self.collect_parts(0)?;
        }
        Ok(())
    }

    /// Makes the object durable and visible under `path`, unless the store knows that something lies there.
    pub(super) fn finish(mut self, path: &str) -> Result<RawPublished, RepositoryError> {
        if self.multipart.is_none() {
            let payload = self.buffer.take(usize::MAX);
            return self.store.put_payload(path, &payload, self.create_only, self.patience);
        }
        while self.buffer.length > 0 {
            self.send_part(PART)?;
        }
        self.collect_parts(0)?;
        // Still there if this fails or nothing comes of it, to be aborted on drop.
        let completed = match &self.multipart {
            Some(multipart) => self.complete(multipart)?,
            None => RawPublished::Created,
        };
        if completed != RawPublished::Created {
            return Ok(completed);
        }
        let Some(multipart) = self.multipart.take() else {
            return Ok(RawPublished::Created);
        };
        let published = self.publish_completed(&multipart, path);
        if multipart.publishing == Publishing::ByCopy {
            self.remove_temporary(&multipart.path);
        }
        published
    }

    fn publish_completed(&self, multipart: &Multipart, path: &str) -> Result<RawPublished, RepositoryError> {
        let right = match multipart.verified {
            Verified::ByStore => Ok(()),
            Verified::NotYet => self.compare_content(multipart),
        };
        match multipart.publishing {
            Publishing::ByCopy => {
                right?;
                self.store.copy(&multipart.path, path, multipart.length, self.create_only, self.patience)
            }
            Publishing::ByCompletion(_) => {
                if right.is_err() {
                    self.store.delete(path, self.patience)?;
                }
                right.map(|()| RawPublished::Created)
            }
        }
    }

    fn remove_temporary(&self, path: &str) {
        if let Err(error) = self.store.delete(path, Patience::PerRequest(PATIENCE_OF_CLEANING)) {
            tracing::warn!("{error}; a temporary object stays behind, which nothing reads");
        }
    }

    fn send_part(&mut self, length: usize) -> Result<(), RepositoryError> {
        if self.multipart.is_none() {
            self.multipart = Some(self.create()?);
        }
        self.collect_parts(0)?;
        let payload = self.buffer.take(length);
        let Some(multipart) = &mut self.multipart else {
            return Ok(());
        };
        for block in &payload {
            multipart.content.update(block);
        }
        multipart.length += payload.content_length() as u64;
        let upload = upload_part(
            self.store.clone(),
            multipart.path.clone(),
            multipart.place.clone(),
            multipart.id.clone(),
            multipart.sent,
            payload,
            self.patience,
        );
        multipart.sent += 1;
        multipart.in_flight.push_back(self.store.runtime().spawn(upload));
        Ok(())
    }

    /// Waits until at most `remaining` parts are on their way.
    fn collect_parts(&mut self, remaining: usize) -> Result<(), RepositoryError> {
        let Some(multipart) = &mut self.multipart else {
            return Ok(());
        };
        while multipart.in_flight.len() > remaining {
            let Some(part) = multipart.in_flight.pop_front() else { break };
            let part = self.store.runtime().block_on(part).map_err(|error| {
                // A panic in the upload, or the runtime is gone: a mistake of ours either way.
                self.store
                    .request("publish", &multipart.path)
                    .damaged(format!("the upload of a part ended: {error}"))
            })??;
            multipart.stored.push(part.id);
            if part.verified == Verified::NotYet {
                multipart.verified = Verified::NotYet;
            }
        }
        Ok(())
    }

    fn create(&self) -> Result<Multipart, RepositoryError> {
        let (path, publishing) = match (self.naming, self.create_only, self.store.shared.client.provider) {
            (Naming::Unique, _, _) => (self.key.clone(), Publishing::ByCompletion(Extra::Nothing)),
            (Naming::ByStore, CreateOnly::Enforced, Provider::S3) => {
                (self.key.clone(), Publishing::ByCompletion(Extra::CompleteIfAbsent))
            }
            (Naming::ByStore | Naming::AlwaysSuffixed, _, _) => {
                (temporary_path(&self.key)?, Publishing::ByCopy)
            }
        };
        let place = self.store.place("publish", &path)?;
        let id = retried("publish", &path, self.patience, |deadline| {
            let create = self.store.shared.client.uploads.create_multipart(&place);
            match self.store.attempt(deadline, STALL, create) {
                Ok((id, _)) => Ok(id),
                Err(fault) => Err(classify(self.store.request("publish", &path), fault)),
            }
        })?;
        Ok(Multipart {
            path,
            publishing,
            place,
            id,
            sent: 0,
            stored: Vec::new(),
            in_flight: VecDeque::new(),
            length: 0,
            content: blake3::Hasher::new(),
            verified: Verified::ByStore,
        })
    }

    fn complete(&self, multipart: &Multipart) -> Result<RawPublished, RepositoryError> {
        let (store, path) = (&self.store, multipart.path.as_str());
        let extra = match multipart.publishing {
            Publishing::ByCompletion(extra) => extra,
            Publishing::ByCopy => Extra::Nothing,
        };
        let mut answer_lost = false;
        retried("publish", path, self.patience, |deadline| {
            let parts = multipart.stored.clone();
            let complete =
                store.shared.client.uploads.complete_multipart(&multipart.place, &multipart.id, parts);
            match store.runtime().block_on(watched(deadline, STALL_OF_COPY, extra, complete)) {
                Ok(_) => Ok(RawPublished::Created),
                Err(Fault::Store { error, .. }) if is_taken(&error) => {
                    store.taken(path, deadline).map(RawPublished::Exists)
                }
                // The upload is gone, perhaps because an earlier attempt completed it.
                Err(fault) if answer_lost && is_absent(&fault) => match store.find_once(path, deadline)? {
                    Some(object) if object.size == multipart.length => match extra {
                        Extra::Nothing => Ok(RawPublished::Created),
                        // Or somebody else was faster: the caller compares.
                        Extra::CompleteIfAbsent => Ok(RawPublished::Exists(object)),
                    },
                    Some(object) if extra == Extra::CompleteIfAbsent => Ok(RawPublished::Exists(object)),
                    _ => Err(store.request("publish", path).missing().into()),
                },
                Err(fault) => {
                    answer_lost = true;
                    Err(classify(store.request("publish", path), fault))
                }
            }
        })
    }

    /// Reads a large object back.
    fn compare_content(&self, multipart: &Multipart) -> Result<(), RepositoryError> {
        let mut content = blake3::Hasher::new();
        let mut offset = 0;
        while offset < multipart.length {
            let length = (multipart.length - offset).min(READ_BACK as u64);
            let length = usize::try_from(length).unwrap_or(READ_BACK);
            content.update(&self.store.read_range(&multipart.path, offset, length, self.patience)?);
            offset += length as u64;
        }
        if content.finalize() == multipart.content.finalize() {
            return Ok(());
        }
        let problem = "what the store kept is not what was sent; it was removed".to_owned();
        Err(self.store.request("publish", &multipart.path).damaged(problem))
    }
}

impl Drop for CloudUpload {
    fn drop(&mut self) {
        let Some(multipart) = self.multipart.take() else {
            return;
        };
        let store = &self.store;
        for part in &multipart.in_flight {
            part.abort();
        }
        let abort = async {
            // A part that is still on its way would outlive the abort.
            for part in multipart.in_flight {
                let _ = part.await;
            }
            store.shared.client.uploads.abort_multipart(&multipart.place, &multipart.id).await
        };
        let deadline = Instant::now() + PATIENCE_OF_CLEANING;
        // Nobody reads an unfinished upload; the store's own rules remove it in time.
        if let Err(fault) = store.attempt(deadline, STALL, abort) {
            tracing::debug!("abort the upload of {}: {fault:?}", multipart.path);
        }
    }
}

/// Uploads one part, on the runtime, while the caller goes on.
async fn upload_part(
    store: CloudStore,
    path: String,
    place: Path,
    id: String,
    number: usize,
    payload: PutPayload,
    patience: Patience,
) -> Result<StoredPart, RepositoryError> {
    let mut retries = Retries::begin("publish", &path, patience);
    loop {
        let put = store.shared.client.uploads.put_part(&place, &id, number, payload.clone());
        match watched(retries.deadline(), STALL, Extra::Nothing, put).await {
            Ok((id, seen)) => return Ok(StoredPart { id, verified: store.verify(&payload, &seen) }),
            Err(fault) => {
                let failed = classify(store.request("publish", &path), fault);
                tokio::time::sleep(retries.after(failed)?).await;
            }
        }
    }
}

/// Whether a create-only request was refused because of what lies there.
fn is_taken(error: &Error) -> bool {
    matches!(error, Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. })
}

/// Whether no answer came, or no more of one than that something lies there.
fn may_be_taken(fault: &Fault) -> bool {
    match fault {
        Fault::Store { seen, .. } => matches!(seen.status, None | Some(409 | 412)),
        Fault::Stalled(_) | Fault::OutOfTime => true,
    }
}

fn md5_of(payload: &PutPayload) -> [u8; 16] {
    let mut digest = md5::Md5::new();
    for block in payload {
        digest.update(block);
    }
    digest.finalize().into()
}

fn temporary_path(key: &str) -> Result<String, RepositoryError> {
    Ok(format!("{TEMPORARY_FOLDER}/{}", random_hex("publish", key)?))
}
