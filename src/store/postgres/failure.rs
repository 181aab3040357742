//! PostgreSQL's errors in words, and which of them pass by themselves.

use super::Server;
use crate::{
    store::{CommitError, OpenError, ReadError},
    tls,
};
use deadpool_postgres::PoolError;
use rustls::CertificateError;
use std::{error::Error as _, fmt::Write as _};
use tokio_postgres::{
    Error,
    error::{Severity, SqlState},
};

/// An error and what caused it, in one line.
pub(super) fn chain(error: &Error) -> String {
    let mut text = match error.as_db_error() {
        Some(db) => {
            let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
            if let Some(hint) = db.hint() {
                let _ = write!(text, "; {hint}");
            }
            return text;
        }
        None => error.to_string(),
    };
    let mut cause = error.source();
    while let Some(inner) = cause {
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    text
}

/// What is wrong with the certificate that the server showed, if that is what failed.
fn certificate(error: &Error) -> Option<&CertificateError> {
    match tls::tls_error(error)? {
        rustls::Error::InvalidCertificate(wrong) => Some(wrong),
        _ => None,
    }
}

/// What to do about an error, for the person who reads it at night.
fn advice(error: &Error) -> &'static str {
    if let Some(wrong) = certificate(error) {
        return match wrong {
            CertificateError::UnknownIssuer => {
                "nobody who is trusted signed the server's certificate: name its authority's file with sslrootcert in \
                 DATABASE_URL (sslmode=verify-full checks it, require does not)"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the server's certificate is for another host: in DATABASE_URL name the server as its certificate does, or \
                 is it another server? (sslmode=verify-full checks it, by the authorities of sslrootcert; require does not)"
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                "renew the server's certificate, unless a clock is wrong (sslmode=verify-full checks it, by the authorities \
                 of sslrootcert; require does not)"
            }
            _ => {
                "the server's certificate is not one that can be checked: replace it, or what sslrootcert in DATABASE_URL \
                 names (sslmode=verify-full checks it, require does not)"
            }
        };
    }
    match error.code() {
        None => "is it running, and does the address in DATABASE_URL reach it?",
        Some(code) if *code == SqlState::DISK_FULL => "free space on the server's disk",
        Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => {
            "raise the server's max_connections, or run fewer instances"
        }
        Some(code)
            if [
                SqlState::INVALID_PASSWORD,
                SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                SqlState::INVALID_CATALOG_NAME,
                SqlState::INSUFFICIENT_PRIVILEGE,
            ]
            .contains(code) =>
        {
            "correct DATABASE_URL, or what its user may do on the server"
        }
        Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE => {
            "something else holds the tables, a pg_dump perhaps: try again when it has ended"
        }
        Some(code) if *code == SqlState::READ_ONLY_SQL_TRANSACTION => {
            "it is a standby; name the primary, or all servers of the cluster, in DATABASE_URL"
        }
        Some(_) => "see the server's log",
    }
}

/// A start that failed.
pub(super) fn open(server: &Server, error: &Error) -> OpenError {
    OpenError(format!("{server}: {}; {}", chain(error), advice(error)))
}

/// A commit that failed.
pub(super) fn commit(server: &Server, error: &Error) -> CommitError {
    CommitError::Unavailable(format!(
        "{server}: {}; it is tried again by itself; {}",
        chain(error),
        advice(error)
    ))
}

/// A read that failed.
pub(super) fn read(server: &Server, error: &Error) -> ReadError {
    ReadError::Unavailable(format!("{server}: {}; {}", chain(error), advice(error)))
}

/// No connection to read on.
pub(super) fn pool(server: &Server, error: PoolError) -> ReadError {
    match error {
        PoolError::Backend(error) => read(server, &error),
        PoolError::Timeout(_) => ReadError::Unavailable(format!(
            "{server}: no connection came up in time; is it running, and does the address in DATABASE_URL reach it?"
        )),
        error => ReadError::Unavailable(format!("{server}: {error}")),
    }
}

/// Whether the connection is of no use any more, or the server is going away or coming up: the same on another connection
/// may succeed.
pub(super) fn is_connection(error: &Error) -> bool {
    error.code().is_none_or(|code| {
        // Class 08 is connections, 57 an operator who intervenes.
        code.code().starts_with("08")
            || [
                SqlState::ADMIN_SHUTDOWN,
                SqlState::CRASH_SHUTDOWN,
                SqlState::CANNOT_CONNECT_NOW,
                SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
            ]
            .contains(code)
    })
}

/// Whether a commit that failed in this way may have happened all the same: nobody has answered, or a server process that
/// ended itself. One that cannot sync has told its client before it goes down, and may find the commit in its log when it is
/// back. Any other error that the server tells is told after it has undone all.
pub(super) fn leaves_in_doubt(error: &Error) -> bool {
    is_connection(error)
        || error
            .as_db_error()
            .is_some_and(|error| matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic)))
}

/// Whether the same commit may succeed when it is tried again soon.
pub(super) fn passes(error: &Error) -> bool {
    is_connection(error)
        || error.code().is_some_and(|code| {
            [
                SqlState::T_R_SERIALIZATION_FAILURE,
                SqlState::T_R_DEADLOCK_DETECTED,
                SqlState::TOO_MANY_CONNECTIONS,
                SqlState::READ_ONLY_SQL_TRANSACTION,
                SqlState::LOCK_NOT_AVAILABLE,
            ]
            .contains(code)
        })
}
