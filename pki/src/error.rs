//! Errors of keys and certificates.

use std::path::PathBuf;

use postern_runtime::private_file::PrivateFileError;

/// An error of keys or certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Other users can read a private key.
    #[error("{} can be read by other users (mode {mode:04o}); run `chmod 600 {}` and consider the key leaked", path.display(), path.display())]
    ExposedKey {
        /// The file.
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
    /// A private key belongs to another user.
    #[error(transparent)]
    ForeignKey(PrivateFileError),
    /// A private key is not a plain file.
    #[error("{} is not a plain file; put the key itself there", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The directory has a certificate authority already.
    #[error(
        "{} exists already; this authority was set up before. If no administrator has an identity, make one with `postern-broker issue NAME \
         --role administrator --out DIR`",
        path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file or message is malformed.
    #[error("{what} is malformed: {problem}")]
    Malformed {
        /// The name of the file or message.
        what: String,
        /// The problem.
        problem: String,
    },
    /// A certificate signing request is malformed or does not prove that its sender has the key.
    #[error("the certificate signing request is refused: {problem}")]
    BadRequest {
        /// The problem.
        problem: String,
    },
    /// The certificate does not belong to the private key.
    #[error("the certificate does not belong to the private key")]
    KeyMismatch,
    /// The authority cannot sign now.
    #[error(
        "the authority's intermediate certificate is not valid at this time ({valid}); run `postern-broker authority renew --root-key FILE`, or set the machine's clock where that is wrong"
    )]
    AuthorityNotValid {
        /// The time for which the certificate is valid.
        valid: String,
    },
    /// The root cannot sign an intermediate now.
    #[error(
        "the authority's root certificate is not valid at this time ({valid}); set the machine's clock where that is wrong, or set up a new authority"
    )]
    RootNotValid {
        /// The time for which the certificate is valid.
        valid: String,
    },
    /// A file holds another key than the root's.
    #[error("{} is not the private key of {}; name the root.key that `init` made with it", path.display(), root.display())]
    WrongRootKey {
        /// The file.
        path: PathBuf,
        /// The root's certificate.
        root: PathBuf,
    },
    /// The intermediate or its key cannot be used.
    #[error(
        "the authority has no intermediate that it can sign with; put intermediate.key back, or run `postern-broker authority renew --root-key FILE`, which needs root.pem and the root key alone"
    )]
    NoIntermediate(#[source] Box<Self>),
    /// The private key of the intermediate for people is not there.
    #[error(
        "the private key that signs for people is not in {}; name its file with --people-key FILE or in [authority] people_key; if \
         it is lost, run `postern-broker authority renew --root-key FILE --replace-people`",
        path.display()
    )]
    NoPeopleKey {
        /// The file.
        path: PathBuf,
    },
    /// The file for the next root's key holds the present root's.
    #[error("{} holds the key of the present root; name another file with --new-root-key FILE", path.display())]
    SameRootKey {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot take a new private key that signs for people.
    #[error(
        "{} cannot take the private key that signs for people: {problem}; name a file that does not exist, or the one with that key, with \
         --people-key FILE or in [authority] people_key",
        path.display()
    )]
    NoPlaceForPeopleKey {
        /// The file.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
    /// A file cannot hold the next root's key.
    #[error(
        "{} cannot hold the next root's private key: {problem}; name a file that does not exist with --new-root-key FILE",
        path.display()
    )]
    NoPlaceForRootKey {
        /// The file.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
    /// A file does not hold the key of the next root, which was made before.
    #[error(
        "{} does not hold the private key of the next root, which {} has already; name the file that the first `roll begin` wrote, or \
         leave out --new-root-key",
        path.display(),
        roll.display()
    )]
    OtherNextRootKey {
        /// The file.
        path: PathBuf,
        /// The file with the next root's certificate.
        roll: PathBuf,
    },
    /// No root is being replaced that could be finished.
    #[error(
        "no root is being replaced, and nothing was changed: the root is {serial}, good until {end:.0}; if `roll finish` ran before, it is done"
    )]
    NothingToFinish {
        /// The serial number of the root.
        serial: String,
        /// The end of the root.
        end: jiff::Timestamp,
    },
    /// No root is being replaced.
    #[error("no root is being replaced; begin with `postern-broker authority roll begin --root-key FILE`")]
    NoRoll,
    /// The next root does not sign yet.
    #[error("the next root does not sign yet; run `postern-broker authority roll switch` first")]
    NotSwitched,
    /// The intermediate for people is under the old root.
    #[error(
        "the intermediate for people ({}) is under the old root; run `postern-broker authority roll switch --people-key FILE` with its key, or \
         --force to refuse its certificates from now on",
        path.display()
    )]
    PeopleUnderOldRoot {
        /// The certificate.
        path: PathBuf,
    },
    /// Another program is changing the authority.
    #[error("another program is changing the authority in {}; run the command again once it is done", path.display())]
    RenewalUnderWay {
        /// The authority's directory.
        path: PathBuf,
    },
    /// The system returned no random bytes, or a signature could not be made.
    #[error("cannot make a key, a certificate or random bytes: {problem}")]
    Crypto {
        /// The cause.
        problem: String,
    },
    /// A TLS configuration cannot be built.
    #[error("the TLS configuration cannot be built")]
    Tls(#[from] rustls::Error),
}

impl PkiError {
    /// Reports whether the fault lies in a signing request that a peer sent.
    pub fn is_bad_csr(&self) -> bool {
        matches!(self, Self::BadRequest { .. })
    }

    pub(crate) fn malformed(what: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Self::Malformed { what: what.into(), problem: problem.to_string() }
    }
}

impl From<rcgen::Error> for PkiError {
    fn from(error: rcgen::Error) -> Self {
        Self::Crypto { problem: error.to_string() }
    }
}
