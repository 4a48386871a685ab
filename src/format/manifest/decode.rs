//! Reading a manifest's body. Whatever it says is checked before anybody relies on it: a restore writes where it says.

use super::bytes::Reader;
use super::encode::{ChunkPlace, MAGIC, OPTIONAL_FROM, RecentChunks, flag, tag};
use super::{
    CatalogueEntry, Digested, DirectoryEntry, FileEntry, FileRange, Manifest, PackEntry, ParseManifestError,
    RangeSource, Root, Tablespace,
};
use crate::codec::{Compression, KeyId};
use crate::format::BackupId;
use crate::format::digest::ShortDigest;
use crate::format::envelope::MAX_CHUNK_SIZE;

type Parsed<T> = Result<T, ParseManifestError>;

/// The sections, each at most once.
#[derive(Default)]
struct Sections {
    summary: Option<super::BackupSummary>,
    server: Option<super::ServerFacts>,
    backup_label: Option<String>,
    tablespace_map: Option<String>,
    tablespaces: Option<Vec<Tablespace>>,
    catalogue: Option<Vec<CatalogueEntry>>,
    packs: Option<Vec<PackEntry>>,
    directories: Option<Vec<DirectoryEntry>>,
    files: Option<Vec<FileEntry>>,
}

pub(super) fn decode(body: &[u8]) -> Parsed<Manifest> {
    let mut reader = Reader::new(body);
    if reader.array("the magic")? != *MAGIC {
        return Err(ParseManifestError {
            offset: 0,
            problem: "it does not begin as a manifest does".to_owned(),
        });
    }
    let mut sections = Sections::default();
    while !reader.is_empty() {
        let tag = reader.byte("a section")?;
        if tag == tag::FILES {
            let packs = sections.packs.as_deref().ok_or_else(|| reader.error("files come before packs"))?;
            let files = decode_files(&mut reader, packs)?;
            set(&mut sections.files, files, &reader)?;
        } else {
            let mut section = reader.section("a section")?;
            decode_section(tag, &mut section, &mut sections)?;
            if tag < OPTIONAL_FROM && !section.is_empty() {
                return Err(section.error(format!("section {tag} is longer than its content")));
            }
        }
    }
    let missing = |what: &str| reader.error(format!("there is no {what}"));
    let manifest = Manifest {
        summary: sections.summary.ok_or_else(|| missing("summary"))?,
        server: sections.server.ok_or_else(|| missing("server section"))?,
        backup_label: sections.backup_label.ok_or_else(|| missing("backup_label"))?,
        tablespace_map: sections.tablespace_map,
        tablespaces: sections.tablespaces.ok_or_else(|| missing("tablespace section"))?,
        catalogue: sections.catalogue.ok_or_else(|| missing("catalogue"))?,
        packs: sections.packs.ok_or_else(|| missing("pack section"))?,
        directories: sections.directories.ok_or_else(|| missing("directory section"))?,
        files: sections.files.ok_or_else(|| missing("file section"))?,
    };
    check_tree(&manifest).map_err(|problem| reader.error(problem))?;
    Ok(manifest)
}

fn decode_section(tag: u8, section: &mut Reader<'_>, sections: &mut Sections) -> Parsed<()> {
    match tag {
        tag::SUMMARY => set(&mut sections.summary, json(section, "the summary")?, section),
        tag::SERVER => set(&mut sections.server, json(section, "the server section")?, section),
        tag::BACKUP_LABEL => set(&mut sections.backup_label, rest_text(section, "backup_label")?, section),
        tag::TABLESPACE_MAP => {
            set(&mut sections.tablespace_map, rest_text(section, "tablespace_map")?, section)
        }
        tag::TABLESPACES => set(&mut sections.tablespaces, json(section, "the tablespaces")?, section),
        tag::CATALOGUE => set(&mut sections.catalogue, decode_catalogue(section)?, section),
        tag::PACKS => set(&mut sections.packs, decode_packs(section)?, section),
        tag::DIRECTORIES => set(&mut sections.directories, decode_directories(section)?, section),
        unknown if unknown >= OPTIONAL_FROM => Ok(()),
        unknown => Err(section.error(format!("section {unknown} is not known to this walhold"))),
    }
}

fn set<T>(slot: &mut Option<T>, value: T, reader: &Reader<'_>) -> Parsed<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(reader.error("a section comes twice")),
    }
}

fn json<T: serde::de::DeserializeOwned>(section: &mut Reader<'_>, what: &str) -> Parsed<T> {
    let text = section.rest();
    serde_json::from_slice(text).map_err(|error| section.error(format!("{what}: {error}")))
}

fn rest_text(section: &mut Reader<'_>, what: &str) -> Parsed<String> {
    let bytes = section.rest().to_vec();
    String::from_utf8(bytes).map_err(|_| section.error(format!("{what} is not UTF-8")))
}

fn decode_catalogue(reader: &mut Reader<'_>) -> Parsed<Vec<CatalogueEntry>> {
    let count = reader.count(6, "the catalogue")?;
    let mut entries: Vec<CatalogueEntry> = Vec::with_capacity(count);
    for _ in 0..count {
        let flags = reader.byte("a catalogue entry")?;
        let before = entries.last();
        let (database, database_oid) = match (flags & 1 != 0, before) {
            (false, _) => (reader.text("a database's name")?.to_owned(), reader.number("a database's oid")?),
            (true, Some(before)) => (before.database.clone(), before.database_oid),
            (true, None) => return Err(reader.error("the first catalogue entry refers to one before it")),
        };
        let schema = match (flags & 2 != 0, before) {
            (false, _) => reader.text("a schema's name")?.to_owned(),
            (true, Some(before)) => before.schema.clone(),
            (true, None) => return Err(reader.error("the first catalogue entry refers to one before it")),
        };
        let relation = reader.text("a relation's name")?.to_owned();
        let oid: u32 = reader.number("a relation's oid")?;
        let relfilenode = reader.signed("a relfilenode")?.checked_add(i64::from(oid));
        let relfilenode = relfilenode.and_then(|node| u32::try_from(node).ok());
        let relfilenode = relfilenode.ok_or_else(|| reader.error("a relfilenode is out of range"))?;
        let tablespace = reader.number("a tablespace's oid")?;
        let kind = char::from_u32(reader.number("a relation's kind")?);
        let kind = kind.ok_or_else(|| reader.error("a relation's kind is not a character"))?;
        entries.push(CatalogueEntry {
            database,
            database_oid,
            schema,
            relation,
            oid,
            relfilenode,
            tablespace,
            kind,
        });
    }
    Ok(entries)
}

pub(super) fn decode_packs(reader: &mut Reader<'_>) -> Parsed<Vec<PackEntry>> {
    let count = reader.count(40, "the packs' backups")?;
    let mut backups: Vec<BackupId> = Vec::with_capacity(count);
    for _ in 0..count {
        let id = reader.text("a backup id")?.parse();
        backups.push(id.map_err(|error| reader.error(format!("a pack's backup: {error}")))?);
    }
    let count = reader.count(37, "the packs")?;
    let mut packs = Vec::with_capacity(count);
    for _ in 0..count {
        let backup = backups.get(reader.number::<usize>("a pack's backup")?).cloned();
        let backup = backup.ok_or_else(|| reader.error("a pack's backup is not in the list"))?;
        let number = reader.number("a pack's number")?;
        let stored_length = reader.varint("a pack's length")?;
        let compression = match reader.byte("a pack's compression")? {
            0 => Compression::None,
            1 => {
                let level = i32::try_from(reader.signed("a compression level")?);
                Compression::Zstd(level.map_err(|_| reader.error("a compression level is out of range"))?)
            }
            other => return Err(reader.error(format!("compression {other} is not known to this walhold"))),
        };
        let key_id = match reader.byte("a pack's key")? {
            0 => None,
            1 => Some(KeyId(reader.array("a key id")?)),
            other => return Err(reader.error(format!("cipher {other} is not known to this walhold"))),
        };
        let salt = reader.array("a pack's salt")?;
        packs.push(PackEntry { backup, number, stored_length, compression, key_id, salt });
    }
    Ok(packs)
}

fn decode_directories(reader: &mut Reader<'_>) -> Parsed<Vec<DirectoryEntry>> {
    let count = reader.count(3, "the directories")?;
    let mut directories: Vec<DirectoryEntry> = Vec::with_capacity(count);
    for _ in 0..count {
        let before = directories.last().map(|directory| directory.path.as_slice());
        let path = decode_path(reader, before.unwrap_or_default())?;
        if before.is_some_and(|before| before >= path.as_slice()) {
            return Err(reader.error("directories are out of order"));
        }
        directories.push(DirectoryEntry { path, mode: decode_mode(reader)? });
    }
    Ok(directories)
}

/// A path that stays below its root.
fn decode_path(reader: &mut Reader<'_>, before: &[u8]) -> Parsed<Vec<u8>> {
    let shared: usize = reader.number("a path")?;
    let rest = reader.bytes("a path")?;
    let shared = before.get(..shared).ok_or_else(|| reader.error("a path shares more than there is"))?;
    let path = [shared, rest].concat();
    let sound = |segment: &[u8]| !matches!(segment, b"" | b"." | b"..") && !segment.contains(&0);
    if !path.split(|byte| *byte == b'/').all(sound) {
        let path = String::from_utf8_lossy(&path).into_owned();
        return Err(reader.error(format!("path {path:?} could leave its directory")));
    }
    Ok(path)
}

fn decode_mode(reader: &mut Reader<'_>) -> Parsed<u32> {
    let mode = reader.number("permission bits")?;
    if mode > 0o7777 { Err(reader.error("permission bits are out of range")) } else { Ok(mode) }
}

fn decode_files(reader: &mut Reader<'_>, packs: &[PackEntry]) -> Parsed<Vec<FileEntry>> {
    let count = reader.count(7, "the files")?;
    let mut files: Vec<FileEntry> = Vec::with_capacity(count);
    let mut modified = 0i64;
    let mut recent = RecentChunks::default();
    for _ in 0..count {
        let root = match reader.byte("a file's root")? {
            0 => Root::DataDirectory,
            1 => Root::External,
            other => return Err(reader.error(format!("a file's root is {other}"))),
        };
        let before = files.last();
        let path = decode_path(reader, before.map(|file| file.path.as_slice()).unwrap_or_default())?;
        if before.is_some_and(|before| (before.root, before.path.as_slice()) >= (root, path.as_slice())) {
            return Err(reader.error("files are out of order"));
        }
        let mode = decode_mode(reader)?;
        let size = reader.varint("a file's size")?;
        modified = modified.wrapping_add(reader.signed("a modification time")?);
        let ranges = decode_ranges(reader, packs, size, &mut recent)?;
        files.push(FileEntry { root, path, mode, size, modified, ranges });
    }
    Ok(files)
}

fn decode_ranges(
    reader: &mut Reader<'_>,
    packs: &[PackEntry],
    size: u64,
    recent: &mut RecentChunks,
) -> Parsed<Vec<FileRange>> {
    let count = reader.count(2, "a file's ranges")?;
    let mut ranges = Vec::with_capacity(count);
    let mut offset = 0u64;
    for _ in 0..count {
        let (length, source) = decode_range(reader, packs, recent)?;
        ranges.push(FileRange { offset, length, source });
        // Neither side can overflow: at most 2^32 ranges of at most 2^32 bytes would need a body larger than memory.
        offset = offset.saturating_add(u64::from(length));
    }
    if offset != size {
        return Err(reader.error(format!("a file of {size} bytes has ranges for {offset}")));
    }
    Ok(ranges)
}

fn decode_range(
    reader: &mut Reader<'_>,
    packs: &[PackEntry],
    recent: &mut RecentChunks,
) -> Parsed<(u32, RangeSource)> {
    let flags = reader.byte("a range")?;
    let length: u32 = reader.number("a range's length")?;
    if length == 0 {
        return Err(reader.error("a range is empty"));
    }
    if flags == 0 {
        return Ok((length, RangeSource::Zeros));
    }
    if !fit_together(flags) {
        return Err(reader.error(format!("a range's flags are {flags:#x}")));
    }
    let has = |bit| flags & bit != 0;
    if has(flag::OTHER_CHUNK) {
        recent.turn_back();
    } else if !has(flag::SAME_CHUNK) {
        let mut place = recent.last.place;
        if has(flag::NEXT_CHUNK) {
            (place.number, place.offset) = place.following();
        } else {
            place.pack = reader.number("a chunk's pack")?;
            place.number = reader.number("a chunk's number")?;
            place.offset = reader.varint("a chunk's offset")?;
        }
        place.stored_length = reader.number("a chunk's stored length")?;
        place.plaintext_length =
            if has(flag::WHOLE_CHUNK) { length } else { reader.number("a chunk's plaintext length")? };
        recent.turn_to(place);
    }
    let within = if has(flag::WHOLE_CHUNK) { 0 } else { reader.number("an offset in a chunk")? };
    let digested = if has(flag::SAME_DIGEST) {
        recent.last.digested
    } else {
        let (within, length) = match has(flag::PART) {
            true => (reader.number("where a digest begins")?, reader.number("how much a digest is of")?),
            false => (within, length),
        };
        Digested { within, length, digest: ShortDigest(reader.array("a digest")?) }
    };
    recent.last.digested = digested;
    let place = recent.last.place;
    check_range(place, packs, within, length, digested).map_err(|problem| reader.error(problem))?;
    let ChunkPlace { pack, number, offset, stored_length, plaintext_length } = place;
    Ok((
        length,
        RangeSource::Chunk { pack, number, offset, stored_length, plaintext_length, within, digested },
    ))
}

/// At most one says where the chunk is; only parts of what was digested can share a digest.
fn fit_together(flags: u8) -> bool {
    let has = |bit| flags & bit != 0;
    let places = [flag::SAME_CHUNK, flag::NEXT_CHUNK, flag::OTHER_CHUNK];
    flags & !flag::ALL == 0
        && has(flag::CHUNK)
        && places.iter().filter(|bit| has(**bit)).count() <= 1
        && (!has(flag::SAME_DIGEST) || has(flag::PART))
}

fn check_range(
    place: ChunkPlace,
    packs: &[PackEntry],
    within: u32,
    length: u32,
    digested: Digested,
) -> Result<(), &'static str> {
    let Some(pack) = packs.get(place.pack as usize) else {
        return Err("a chunk's pack is not in the list");
    };
    let end = place.offset.checked_add(u64::from(place.stored_length));
    if place.stored_length == 0 || end.is_none_or(|end| end > pack.stored_length) {
        return Err("a chunk does not lie in its pack");
    }
    if place.plaintext_length as usize > MAX_CHUNK_SIZE {
        return Err("a chunk is larger than chunks may be");
    }
    let (Some(end), Some(digested_end)) =
        (within.checked_add(length), digested.within.checked_add(digested.length))
    else {
        return Err("a range does not lie in its chunk");
    };
    if end > place.plaintext_length || digested_end > place.plaintext_length {
        return Err("a range does not lie in its chunk");
    }
    if within < digested.within || end > digested_end {
        return Err("a range's digest is not of its bytes");
    }
    Ok(())
}

/// Every file and directory lies in a directory that is listed, in PGDATA itself, or directly below a tablespace's link;
/// nothing is both.
fn check_tree(manifest: &Manifest) -> Result<(), String> {
    let directories = &manifest.directories;
    let listed = |path: &[u8]| directories.binary_search_by(|entry| entry.path.as_slice().cmp(path)).is_ok();
    let is_link = |path: &[u8]| {
        let oid = path.strip_prefix(b"pg_tblspc/").and_then(|oid| std::str::from_utf8(oid).ok());
        oid.is_some_and(|oid| manifest.tablespaces.iter().any(|tablespace| tablespace.oid.to_string() == oid))
    };
    let has_parent = |path: &[u8]| match path.iter().rposition(|byte| *byte == b'/') {
        None => true,
        Some(end) => {
            let parent = path.get(..end).unwrap_or_default();
            listed(parent) || is_link(parent)
        }
    };
    let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    for directory in directories {
        if !has_parent(&directory.path) {
            return Err(format!("directory {:?} lies in one that is not listed", name(&directory.path)));
        }
    }
    for file in manifest.files.iter().filter(|file| file.root == Root::DataDirectory) {
        if !has_parent(&file.path) {
            return Err(format!("file {:?} lies in a directory that is not listed", name(&file.path)));
        }
        if listed(&file.path) || is_link(&file.path) {
            return Err(format!("{:?} is a file and a directory", name(&file.path)));
        }
    }
    Ok(())
}
