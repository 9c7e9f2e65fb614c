//! The keys by which the ledger's secrets are sealed, and where nonces come from. What a sealed text is says
//! [`relay_core::sealing`]; called where endpoints are written and read.

use std::fmt;
use std::sync::Arc;

use relay_core::ids::{EndpointId, TenantId};
use relay_core::sealing::{Field, NonceBytes, Place, SealingKeys, Withheld};
use relay_core::signature::{SigningKey, SigningSecret};
use secrecy::{ExposeSecret, SecretString};

use crate::connect::Store;
use crate::error::StoreError;

/// Seals and opens the secrets of endpoints. Cheap to clone.
#[derive(Clone)]
pub struct Sealer {
    pub(crate) keys: Arc<SealingKeys>,
    nonce: fn() -> NonceBytes,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sealer").field(&self.keys).finish()
    }
}

impl Sealer {
    /// With these keys; `nonce` gives random bytes, others at each call.
    pub fn new(keys: SealingKeys, nonce: fn() -> NonceBytes) -> Self {
        Self { keys: Arc::new(keys), nonce }
    }

    /// For the secrets of one endpoint.
    pub(crate) fn of<'a>(&'a self, tenant: &'a TenantId, endpoint: EndpointId) -> EndpointSealer<'a> {
        EndpointSealer { sealer: self, tenant, endpoint }
    }
}

/// Seals and opens the secrets of one endpoint.
pub(crate) struct EndpointSealer<'a> {
    sealer: &'a Sealer,
    tenant: &'a TenantId,
    endpoint: EndpointId,
}

impl EndpointSealer<'_> {
    fn place<'b>(&'b self, field: Field<'b>) -> Place<'b> {
        Place { tenant: self.tenant, endpoint: self.endpoint, field }
    }

    pub(crate) fn seal(&self, field: Field<'_>, secret: &str) -> String {
        self.sealer.keys.seal(&self.place(field), secret, (self.sealer.nonce)())
    }

    pub(crate) fn open(&self, field: Field<'_>, stored: &str) -> Result<SecretString, Withheld> {
        self.sealer.keys.open(&self.place(field), stored)
    }

    pub(crate) fn secret(&self, secret: &SigningSecret) -> String {
        self.seal(Field::SigningSecret, secret.expose())
    }

    pub(crate) fn key(&self, key: &SigningKey) -> String {
        self.seal(Field::SigningKey, key.expose())
    }

    pub(crate) fn header(&self, name: &str, value: &SecretString) -> String {
        self.seal(Field::Header(name), value.expose_secret())
    }
}

impl Store {
    /// The keys for a statement that writes secrets.
    pub(crate) fn sealer(&self) -> Result<&Sealer, StoreError> {
        let missing = || StoreError::Inconsistent("this process was opened without access to secrets".to_owned());
        self.secrets.as_ref().ok_or_else(missing)
    }
}
