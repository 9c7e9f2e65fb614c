//! Seals every stored secret with the first key: after a new key came in, and what was stored before there was one.
//! Called by `webhook-relay secrets rotate`, and by `up` when it starts; pods may work meanwhile.
//!
//! Invariant: a text is replaced only while it is the one that was opened, so a secret that was changed in between
//! stays. A row that was replaced raises its tenant's version: a pod that could not open it reads it again.

use std::collections::BTreeMap;

use relay_core::ids::{EndpointId, TenantId};
use relay_core::sealing::{Field, Withheld, is_sealed};
use secrecy::ExposeSecret as _;
use sqlx::types::Json;
use uuid::Uuid;

use crate::connect::Store;
use crate::error::StoreError;
use crate::sealer::{EndpointSealer, Sealer};

/// Endpoints in one statement.
const BATCH: i64 = 200;
/// Passes at most, when rows change meanwhile.
const PASSES_MAX: usize = 5;

/// What became of the stored secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resealed {
    /// Endpoints that were looked at in the last pass.
    pub endpoints: u64,
    /// Secrets that were sealed with another key.
    pub rotated: u64,
    /// Secrets that stood there as they are.
    pub encrypted: u64,
    /// Endpoints that changed again and again meanwhile, and still have a text of before.
    pub unsettled: u64,
    /// Endpoints whose secrets can't be opened; they stay as they are.
    pub failed: Vec<Unsealable>,
}

/// An endpoint whose secrets can't be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsealable {
    /// Whose it is.
    pub tenant: TenantId,
    /// Which one.
    pub endpoint: EndpointId,
    /// Why.
    pub why: Withheld,
}

/// The texts of a row.
struct Texts {
    id: Uuid,
    secret: String,
    previous_secret: Option<String>,
    signing_key: Option<String>,
    previous_signing_key: Option<String>,
    secret_headers: Json<BTreeMap<String, String>>,
}

/// Secrets that were sealed anew.
#[derive(Clone, Copy, Default)]
struct Count {
    rotated: u64,
    encrypted: u64,
}

impl Texts {
    /// The row's texts by the first key; `None`: they are.
    fn sealed_anew(&self, tenant: &TenantId, sealer: &Sealer) -> Result<Option<(Self, Count)>, Withheld> {
        let of = sealer.of(tenant, EndpointId(self.id));
        let mut count = Count::default();
        let mut anew = |field: Field<'_>, text: &str| anew(&of, sealer, field, text, &mut count);
        let mut optional = |field, text: &Option<String>| text.as_deref().map(|t| anew(field, t)).transpose();
        let previous_secret = optional(Field::SigningSecret, &self.previous_secret)?;
        let signing_key = optional(Field::SigningKey, &self.signing_key)?;
        let previous_signing_key = optional(Field::SigningKey, &self.previous_signing_key)?;
        let headers = self.secret_headers.0.iter();
        let headers: Result<_, Withheld> =
            headers.map(|(name, text)| Ok((name.clone(), anew(Field::Header(name), text)?))).collect();
        let texts = Self {
            id: self.id,
            secret: anew(Field::SigningSecret, &self.secret)?,
            previous_secret,
            signing_key,
            previous_signing_key,
            secret_headers: Json(headers?),
        };
        Ok((count.rotated + count.encrypted > 0).then_some((texts, count)))
    }

    fn headers(&self) -> String {
        serde_json::to_string(&self.secret_headers.0).expect("a map of texts is JSON")
    }
}

fn anew(
    of: &EndpointSealer<'_>,
    sealer: &Sealer,
    field: Field<'_>,
    text: &str,
    count: &mut Count,
) -> Result<String, Withheld> {
    if sealer.keys.is_current(text) {
        return Ok(text.to_owned());
    }
    let secret = of.open(field, text)?;
    if is_sealed(text) {
        count.rotated += 1;
    } else {
        count.encrypted += 1;
    }
    Ok(of.seal(field, secret.expose_secret()))
}

impl Store {
    /// Seals every secret of every endpoint with the first key. Without a key nothing is changed.
    pub async fn reseal_all(&self) -> Result<Resealed, StoreError> {
        let mut all = Resealed::default();
        for _ in 0..PASSES_MAX {
            all = Resealed { rotated: all.rotated, encrypted: all.encrypted, ..Resealed::default() };
            let tenants = self.queries.all(sqlx::query_scalar!("select t.id from tenants t order by t.id")).await?;
            for tenant in tenants {
                self.reseal_tenant(&TenantId::trusted(&tenant), &mut all).await?;
            }
            if all.unsettled == 0 {
                break;
            }
        }
        Ok(all)
    }

    async fn reseal_tenant(&self, tenant: &TenantId, all: &mut Resealed) -> Result<(), StoreError> {
        let sealer = self.sealer()?;
        let mut after = Uuid::nil();
        loop {
            let rows = self
                .queries
                .all(sqlx::query_as!(
                    Texts,
                    r#"select id, secret, previous_secret, signing_key, previous_signing_key,
                        secret_headers as "secret_headers: Json<BTreeMap<String, String>>"
                    from endpoints where tenant = $1 and id > $2 order by id limit $3"#,
                    tenant.as_str(),
                    after,
                    BATCH
                ))
                .await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.id;
            let (mut old, mut new, mut counts) = (Vec::new(), Vec::new(), BTreeMap::new());
            for row in rows {
                all.endpoints += 1;
                match row.sealed_anew(tenant, sealer) {
                    Ok(None) => {}
                    Ok(Some((texts, count))) => {
                        counts.insert(row.id, count);
                        old.push(row);
                        new.push(texts);
                    }
                    Err(why) => {
                        all.failed.push(Unsealable { tenant: tenant.clone(), endpoint: EndpointId(row.id), why });
                    }
                }
            }
            for id in self.replace(tenant, &old, &new).await? {
                let count = counts.remove(&id).unwrap_or_default();
                all.rotated += count.rotated;
                all.encrypted += count.encrypted;
            }
            all.unsettled += u64::try_from(counts.len()).unwrap_or(u64::MAX);
        }
    }

    /// Replaces texts where they are still the old ones; the endpoints where they were.
    async fn replace(&self, tenant: &TenantId, old: &[Texts], new: &[Texts]) -> Result<Vec<Uuid>, StoreError> {
        if old.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = old.iter().map(|t| t.id).collect();
        let secrets = |texts: &[Texts]| texts.iter().map(|t| t.secret.clone()).collect::<Vec<_>>();
        let previous = |texts: &[Texts]| texts.iter().map(|t| t.previous_secret.clone()).collect::<Vec<_>>();
        let keys = |texts: &[Texts]| texts.iter().map(|t| t.signing_key.clone()).collect::<Vec<_>>();
        let previous_keys = |texts: &[Texts]| texts.iter().map(|t| t.previous_signing_key.clone()).collect::<Vec<_>>();
        let headers = |texts: &[Texts]| texts.iter().map(Texts::headers).collect::<Vec<_>>();
        self.queries
            .all(sqlx::query_scalar!(
                "with t as (update tenants set directory_version = directory_version + 1 where id = $1 returning directory_version)
                update endpoints e
                set secret = x.secret, previous_secret = x.previous_secret, signing_key = x.signing_key,
                    previous_signing_key = x.previous_signing_key, secret_headers = x.headers::jsonb, version = t.directory_version
                from t, unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                        $8::text[], $9::text[], $10::text[], $11::text[], $12::text[])
                    as x (id, old_secret, old_previous_secret, old_signing_key, old_previous_signing_key, old_headers,
                        secret, previous_secret, signing_key, previous_signing_key, headers)
                where e.id = x.id and e.tenant = $1 and e.secret = x.old_secret
                    and e.previous_secret is not distinct from x.old_previous_secret
                    and e.signing_key is not distinct from x.old_signing_key
                    and e.previous_signing_key is not distinct from x.old_previous_signing_key
                    and e.secret_headers = x.old_headers::jsonb
                returning e.id",
                tenant.as_str(),
                &ids,
                &secrets(old),
                &previous(old) as _,
                &keys(old) as _,
                &previous_keys(old) as _,
                &headers(old),
                &secrets(new),
                &previous(new) as _,
                &keys(new) as _,
                &previous_keys(new) as _,
                &headers(new)
            ))
            .await
    }
}
