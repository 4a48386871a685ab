//! A repository in a cloud store: S3 and compatibles, Google Cloud Storage, Azure, through object_store.
//!
//! In: paths relative to the address's prefix, from any number of plain threads. Out: bytes, sizes, times. One thread
//! drives a small runtime for all clones; callers block. Every request is repeated by [`super::retry`], never by
//! object_store, and every attempt is watched ([`super::transport`]).
//!
//! "No such object" and "no such bucket" look alike here: a 404 is never more than "not found", and
//! [`super::Repository::prove_present`] decides what it means.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use object_store::list::PaginatedListOptions;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ListResult, ObjectMeta, ObjectStore, ObjectStoreExt};

use super::cloud_error::{Request, classify, is_absent};
use super::naming::{RawObject, is_hidden, split_suffix};
use super::providers::Client;
use super::retry::{Failed, retried};
use super::transport::{Extra, Fault, Seen, watched};
use super::upload_buffer::Blocks;
use super::{Patience, RepositoryError};

/// An attempt in which no byte moves for so long is given up.
pub(super) const STALL: Duration = Duration::from_secs(15);
/// The same for requests that make a store copy or join what it has, which may take it a while.
pub(super) const STALL_OF_COPY: Duration = Duration::from_secs(60);

/// A connected store. Cheap to clone.
#[derive(Clone)]
pub(super) struct CloudStore {
    pub(super) shared: Arc<CloudShared>,
}

/// What all clones share.
pub(super) struct CloudShared {
    pub(super) client: Client,
    pub(super) url: String,
    prefix: String,
    runtime: Runtime,
    pub(super) blocks: Arc<Blocks>,
    /// Set when the store did not understand a list of objects to delete.
    refuses_lists: AtomicBool,
}

/// A runtime, and the thread that drives it until the last clone is dropped.
struct Runtime {
    handle: tokio::runtime::Handle,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Runtime {
    fn start() -> std::io::Result<Runtime> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        std::thread::Builder::new().name("walhold-http".to_owned()).spawn(move || {
            // Ends when the sender is dropped.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Runtime { handle, _stop: stop })
    }
}

impl CloudStore {
    pub(super) fn new(client: Client, prefix: String, url: &str) -> std::io::Result<CloudStore> {
        let runtime = Runtime::start()?;
        Ok(CloudStore {
            shared: Arc::new(CloudShared {
                client,
                url: url.to_owned(),
                prefix,
                runtime,
                blocks: Arc::default(),
                refuses_lists: AtomicBool::new(false),
            }),
        })
    }

    pub(super) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.shared.runtime.handle
    }

    pub(super) fn objects(&self) -> &dyn ObjectStore {
        self.shared.client.objects.as_ref()
    }

    pub(super) fn request<'a>(&'a self, verb: &'static str, path: &'a str) -> Request<'a> {
        Request { verb, path, url: &self.shared.url }
    }

    /// The store's own path of an object.
    pub(super) fn place(&self, verb: &'static str, path: &str) -> Result<Path, RepositoryError> {
        Path::parse(self.full(path)).map_err(|_| {
            let problem = "this cannot be the path of an object".to_owned();
            RepositoryError::Damaged { verb, key: path.to_owned(), problem }
        })
    }

    fn full(&self, path: &str) -> String {
        let prefix = &self.shared.prefix;
        if prefix.is_empty() { path.to_owned() } else { format!("{prefix}/{path}") }
    }

    /// Runs one attempt on the calling thread.
    pub(super) fn attempt<T>(
        &self,
        deadline: Instant,
        stall: Duration,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<(T, Seen), Fault> {
        self.runtime().block_on(watched(deadline, stall, Extra::Nothing, request))
    }

    /// Asks until it works, cannot work, or the patience is over. `None` if there is no such object.
    fn ask<T, F>(
        &self,
        verb: &'static str,
        path: &str,
        patience: Patience,
        request: impl Fn() -> F,
    ) -> Result<Option<T>, RepositoryError>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        retried(verb, path, patience, |deadline| match self.attempt(deadline, STALL, request()) {
            Ok((value, _)) => Ok(Some(value)),
            Err(fault) if is_absent(&fault) => Ok(None),
            Err(fault) => Err(classify(self.request(verb, path), fault)),
        })
    }

    /// The object under `path`.
    pub(super) fn find(&self, path: &str, patience: Patience) -> Result<Option<RawObject>, RepositoryError> {
        let place = self.place("find", path)?;
        let found = self.ask("find", path, patience, || self.objects().head(&place))?;
        Ok(found.map(|meta| raw_object(path, &meta)))
    }

    /// One attempt at [`CloudStore::find`], inside another request's patience.
    pub(super) fn find_once(&self, path: &str, deadline: Instant) -> Result<Option<RawObject>, Failed> {
        let place = self.place("find", path)?;
        match self.attempt(deadline, STALL, self.objects().head(&place)) {
            Ok((meta, _)) => Ok(Some(raw_object(path, &meta))),
            Err(fault) if is_absent(&fault) => Ok(None),
            Err(fault) => Err(classify(self.request("find", path), fault)),
        }
    }

    /// The object under `path` and its first `length` bytes, or all of it if it is shorter.
    pub(super) fn find_and_read(
        &self,
        path: &str,
        length: usize,
        patience: Patience,
    ) -> Result<Option<(RawObject, Vec<u8>)>, RepositoryError> {
        if length == 0 {
            return Ok(self.find(path, patience)?.map(|object| (object, Vec::new())));
        }
        let place = self.place("read", path)?;
        let end = u64::try_from(length).unwrap_or(u64::MAX);
        retried("read", path, patience, |deadline| {
            let range = get(self.objects(), &place, 0..end, length);
            let (meta, bytes) = match self.attempt(deadline, STALL, range) {
                Ok((answer, _)) => answer,
                Err(fault) if is_absent(&fault) => return Ok(None),
                // No range lies within an empty object.
                Err(Fault::Store { seen: Seen { status: Some(416), .. }, .. }) => {
                    return match self.find_once(path, deadline)? {
                        Some(object) if object.size == 0 => Ok(Some((object, Vec::new()))),
                        Some(_) => {
                            Err(Failed::again("the store says that the object is empty, and that it is not"))
                        }
                        None => Ok(None),
                    };
                }
                Err(fault) => return Err(classify(self.request("read", path), fault)),
            };
            let object = raw_object(path, &meta);
            if bytes.len() as u64 == object.size.min(end) {
                Ok(Some((object, bytes)))
            } else {
                Err(Failed::again(format!("{} bytes came, fewer than the store said", bytes.len())))
            }
        })
    }

    /// Exactly `length` bytes from `offset`.
    pub(super) fn read_range(
        &self,
        path: &str,
        offset: u64,
        length: usize,
        patience: Patience,
    ) -> Result<Vec<u8>, RepositoryError> {
        if length == 0 {
            return Ok(Vec::new());
        }
        let request = self.request("read", path);
        let place = self.place("read", path)?;
        let end = offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        retried("read", path, patience, |deadline| {
            let range = get(self.objects(), &place, offset..end, length);
            let too_short = |size: u64| {
                let problem = format!(
                    "it has {size} bytes, but {length} from {offset} were asked for: it was truncated or replaced"
                );
                request.damaged(problem)
            };
            match self.attempt(deadline, STALL, range) {
                Ok(((_, bytes), _)) if bytes.len() == length => Ok(bytes),
                Ok(((meta, _), _)) if meta.size < end => Err(too_short(meta.size).into()),
                Ok(((_, bytes), _)) => Err(Failed::again(format!("only {} bytes came", bytes.len()))),
                Err(Fault::Store { error, seen }) => {
                    // Each provider has its own way of saying that a range begins after the end.
                    let may_be_short = seen.status == Some(416) || seen.status.is_some_and(|s| s < 300);
                    if may_be_short
                        && let Some(object) = self.find_once(path, deadline)?
                        && object.size < end
                    {
                        return Err(too_short(object.size).into());
                    }
                    Err(classify(request, Fault::Store { error, seen }))
                }
                Err(fault) => Err(classify(request, fault)),
            }
        })
    }

    /// Objects named `key`, `.`, 32 hexadecimal digits; in order.
    pub(super) fn find_suffixed(
        &self,
        key: &str,
        patience: Patience,
    ) -> Result<Vec<RawObject>, RepositoryError> {
        let mut found = self.list_prefix("find", &format!("{key}."), patience)?;
        found.retain(|object| split_suffix(&object.path).is_some_and(|(stem, _)| stem == key));
        Ok(found)
    }

    /// Everything below `folder`, in path order.
    pub(super) fn list(&self, folder: &str, patience: Patience) -> Result<Vec<RawObject>, RepositoryError> {
        self.list_prefix("list", &as_prefix(folder), patience)
    }

    fn list_prefix(
        &self,
        verb: &'static str,
        prefix: &str,
        patience: Patience,
    ) -> Result<Vec<RawObject>, RepositoryError> {
        let mut found = Vec::new();
        self.pages(verb, prefix, None, patience, |page| {
            for meta in page.objects {
                if let Some(path) = self.relative(&meta.location) {
                    found.push(raw_object(&path, &meta));
                }
            }
        })?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// The folders directly below `folder`, in order.
    pub(super) fn list_folders(
        &self,
        folder: &str,
        patience: Patience,
    ) -> Result<Vec<String>, RepositoryError> {
        let mut names = BTreeSet::new();
        self.pages("list", &as_prefix(folder), Some(Cow::Borrowed("/")), patience, |page| {
            let folders = page.common_prefixes.iter().filter_map(|path| self.relative(path));
            let last = |path: String| path.rsplit('/').next().map(str::to_owned);
            names.extend(folders.filter_map(last).filter(|name| !is_hidden(name)));
        })?;
        Ok(names.into_iter().collect())
    }

    /// What lies directly below `folder`: objects, and the names of folders in order.
    pub(super) fn list_level(
        &self,
        folder: &str,
        patience: Patience,
    ) -> Result<(Vec<RawObject>, Vec<String>), RepositoryError> {
        let (mut objects, mut names) = (Vec::new(), BTreeSet::new());
        self.pages("list", &as_prefix(folder), Some(Cow::Borrowed("/")), patience, |page| {
            let found = page.objects.iter();
            objects.extend(found.filter_map(|meta| Some(raw_object(&self.relative(&meta.location)?, meta))));
            let folders = page.common_prefixes.iter().filter_map(|path| self.relative(path));
            let last = |path: String| path.rsplit('/').next().map(str::to_owned);
            names.extend(folders.filter_map(last).filter(|name| !is_hidden(name)));
        })?;
        Ok((objects, names.into_iter().collect()))
    }

    /// Every page of a listing, each with its own attempts.
    fn pages(
        &self,
        verb: &'static str,
        prefix: &str,
        delimiter: Option<Cow<'static, str>>,
        patience: Patience,
        mut visit: impl FnMut(ListResult),
    ) -> Result<(), RepositoryError> {
        let full = self.full(prefix);
        let mut token = None;
        loop {
            let page = self.ask(verb, prefix, patience, || {
                let options = PaginatedListOptions {
                    delimiter: delimiter.clone(),
                    page_token: token.clone(),
                    ..PaginatedListOptions::default()
                };
                self.shared
                    .client
                    .listing
                    .list_paginated(Some(&full).filter(|full| !full.is_empty()).map(String::as_str), options)
            });
            // A folder without objects is listed as empty: here the bucket itself is missing.
            let no_bucket = || RepositoryError::NoMarker { url: self.shared.url.clone() };
            let page = page?.ok_or_else(no_bucket)?;
            visit(page.result);
            match page.page_token {
                Some(next) => token = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Removes one object; success if it is gone already.
    pub(super) fn delete(&self, path: &str, patience: Patience) -> Result<(), RepositoryError> {
        let place = self.place("delete", path)?;
        self.ask("delete", path, patience, || self.objects().delete(&place)).map(|_| ())
    }

    /// Removes objects with one request, if the store takes lists; those that are gone for certain. Tried once: whatever is
    /// left is asked for alone.
    pub(super) fn delete_list(&self, paths: &[&str]) -> HashSet<String> {
        let refused = &self.shared.refuses_lists;
        if paths.len() < 2 || refused.load(Ordering::Relaxed) {
            return HashSet::new();
        }
        let Some(client) = self.shared.client.deleting_lists() else { return HashSet::new() };
        let places: object_store::Result<Vec<Path>> =
            paths.iter().map(|path| Ok(Path::parse(self.full(path))?)).collect();
        let Ok(places) = places else { return HashSet::new() };
        let list = futures_util::stream::iter(places.into_iter().map(Ok)).boxed();
        let answers = async { Ok(client.delete_stream(list).collect::<Vec<_>>().await) };
        let deadline = Instant::now() + STALL_OF_COPY;
        let Ok((answers, _)) = self.attempt(deadline, STALL_OF_COPY, answers) else { return HashSet::new() };
        // One answer for many is the request's, not an object's: some stores know no lists.
        let is_one_failure = matches!(answers.as_slice(), [Err(_)]);
        refused.store(is_one_failure, Ordering::Relaxed);
        answers.into_iter().flatten().filter_map(|place| self.relative(&place)).collect()
    }

    /// A path as this repository knows it.
    fn relative(&self, path: &Path) -> Option<String> {
        let prefix = self.shared.prefix.as_str();
        let path = path.as_ref();
        match prefix {
            "" => Some(path.to_owned()),
            prefix => path.strip_prefix(prefix)?.strip_prefix('/').map(str::to_owned),
        }
    }
}

/// Reads a range, or what the object has of it.
pub(super) async fn get(
    objects: &dyn ObjectStore,
    place: &Path,
    range: std::ops::Range<u64>,
    length: usize,
) -> object_store::Result<(ObjectMeta, Vec<u8>)> {
    let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
    let answer = objects.get_opts(place, options).await?;
    let meta = answer.meta.clone();
    let expected = usize::try_from(meta.size).unwrap_or(usize::MAX).min(length);
    let mut bytes = Vec::with_capacity(expected);
    let mut stream = answer.into_stream();
    while let Some(piece) = stream.try_next().await? {
        // A store that sends more than it was asked for must not fill the memory.
        let room = length.saturating_sub(bytes.len());
        bytes.extend_from_slice(piece.get(..room).unwrap_or(&piece));
    }
    Ok((meta, bytes))
}

pub(super) fn raw_object(path: &str, meta: &ObjectMeta) -> RawObject {
    // Whole seconds: a header has no more, a listing may, and both are the same object.
    let modified = jiff::Timestamp::from_second(meta.last_modified.timestamp());
    RawObject { path: path.to_owned(), size: meta.size, modified: modified.unwrap_or_default() }
}

fn as_prefix(folder: &str) -> String {
    if folder.is_empty() { String::new() } else { format!("{folder}/") }
}
