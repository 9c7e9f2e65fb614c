//! API keys and tenants, as the interface and the command line make and list them. Checked they are in memory, from the
//! [`directory`](crate::directory).
//!
//! Invariant: every change of a key raises its tenant's `directory_version` in the same statement, so that pods hear of
//! it as they hear of changed endpoints. A last use is no such change.

use chrono::{DateTime, Utc};
use relay_core::ids::{KeyId, TenantId, uuid_v7};
use relay_core::keys::{ApiKey, KEYS_MAX, KeyHash, Scopes, key_hint, key_text};
use relay_core::page::Cursor;
use secrecy::SecretString;
use uuid::Uuid;

use crate::connect::Store;
use crate::error::StoreError;
use crate::window::{Listed, TOTAL_MAX, Window};

/// A key to be made.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its identity.
    pub id: KeyId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What people call it.
    pub name: String,
    /// Its first characters.
    pub hint: String,
    /// What it is looked up by.
    pub hash: KeyHash,
    /// What it may be used for.
    pub scopes: Scopes,
    /// From when on it is void.
    pub expires_at: Option<DateTime<Utc>>,
}

/// What somebody wants of a key.
#[derive(Clone, Debug)]
pub struct KeyWish {
    /// Whose it shall be.
    pub tenant: TenantId,
    /// What people call it.
    pub name: String,
    /// What it may be used for.
    pub scopes: Scopes,
    /// From when on it is void.
    pub expires_at: Option<DateTime<Utc>>,
}

impl KeyWish {
    /// The key with these random bytes, made at `now`: what to store of it, and its text, which nobody can ask for
    /// again.
    pub fn make(self, now: DateTime<Utc>, for_id: [u8; 10], for_secret: [u8; 32]) -> (NewKey, SecretString) {
        let text = key_text(for_secret);
        let new = NewKey {
            id: KeyId(uuid_v7(now, for_id)),
            tenant: self.tenant,
            name: self.name,
            hint: key_hint(&text).to_owned(),
            hash: KeyHash::digest(&text),
            scopes: self.scopes,
            expires_at: self.expires_at,
        };
        (new, text.into())
    }
}

/// What became of a key to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyCreation {
    /// It is there.
    Created(KeyView),
    /// There is no such tenant.
    NoTenant,
    /// The tenant has [`KEYS_MAX`] already.
    TooMany,
}

/// A key as lists show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyView {
    /// Its identity.
    pub id: KeyId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What people call it.
    pub name: String,
    /// Its first characters.
    pub hint: String,
    /// What it may be used for.
    pub scopes: Scopes,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// From when on it is void.
    pub expires_at: Option<DateTime<Utc>>,
    /// Since when it is void.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, to some seconds.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// A tenant as lists show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantView {
    /// Its name.
    pub id: TenantId,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// What a pod keeps of a row of `api_keys`.
pub(crate) struct KeyRow {
    pub(crate) id: Uuid,
    pub(crate) tenant: String,
    pub(crate) hash: Vec<u8>,
    pub(crate) scopes: Vec<String>,
    pub(crate) expires_at: Option<DateTime<Utc>>,
    pub(crate) revoked_at: Option<DateTime<Utc>>,
    pub(crate) version: i64,
}

fn known(scopes: &[String]) -> Scopes {
    Scopes::known(scopes.iter().map(String::as_str))
}

impl TryFrom<KeyRow> for ApiKey {
    type Error = StoreError;

    fn try_from(row: KeyRow) -> Result<Self, StoreError> {
        let hash = row.hash.try_into().map_err(|_| StoreError::Inconsistent(format!("the hash of key {}", row.id)))?;
        Ok(Self {
            id: KeyId(row.id),
            tenant: TenantId::trusted(&row.tenant),
            hash: KeyHash(hash),
            scopes: known(&row.scopes),
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
            version: row.version,
        })
    }
}

struct ViewRow {
    id: Uuid,
    tenant: String,
    name: String,
    hint: String,
    scopes: Vec<String>,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
    last_used_at: Option<DateTime<Utc>>,
}

impl From<ViewRow> for KeyView {
    fn from(row: ViewRow) -> Self {
        Self {
            id: KeyId(row.id),
            tenant: TenantId::trusted(&row.tenant),
            name: row.name,
            hint: row.hint,
            scopes: known(&row.scopes),
            created_at: row.created_at,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
            last_used_at: row.last_used_at,
        }
    }
}

impl Store {
    /// Makes a key.
    pub async fn create_key(&self, new: &NewKey) -> Result<KeyCreation, StoreError> {
        let scopes: Vec<String> = new.scopes.named().map(|scope| scope.as_str().to_owned()).collect();
        // The row lock on the tenant puts creations in one order, so the count is exact.
        let row = sqlx::query_as!(
            ViewRow,
            "with t as (
                update tenants set directory_version = directory_version + 1
                where id = $2 and (select count(*) from api_keys k where k.tenant = $2 and k.revoked_at is null) < $8
                returning directory_version
            )
            insert into api_keys (id, tenant, name, hint, hash, scopes, expires_at, version)
            select $1, $2, $3, $4, $5, $6, $7, t.directory_version from t
            returning id, tenant, name, hint, scopes, created_at, expires_at, revoked_at, last_used_at",
            new.id.0,
            new.tenant.as_str(),
            new.name,
            new.hint,
            new.hash.0.as_slice(),
            &scopes,
            new.expires_at,
            i64::try_from(KEYS_MAX).unwrap_or(i64::MAX)
        );
        if let Some(row) = self.queries.optional(row).await? {
            return Ok(KeyCreation::Created(row.into()));
        }
        let known = sqlx::query_scalar!(
            r#"select exists (select from tenants where id = $1) as "known!""#,
            new.tenant.as_str()
        );
        Ok(if self.queries.one(known).await? { KeyCreation::TooMany } else { KeyCreation::NoTenant })
    }

    /// Keys, newest first: of one tenant, or of all. Those that are void are among them.
    pub async fn list_keys(&self, tenant: Option<&TenantId>, window: &Window) -> Result<Listed<KeyView>, StoreError> {
        let tenant = tenant.map(TenantId::as_str);
        let rows = self.queries.all(sqlx::query_as!(
            ViewRow,
            "select id, tenant, name, hint, scopes, created_at, expires_at, revoked_at, last_used_at from api_keys
            where ($1::text is null or tenant = $1) and ($2::timestamptz is null or (created_at, id) < ($2, $3::uuid))
            order by created_at desc, id desc offset $4 limit $5",
            tenant,
            window.after_at(),
            window.after_id(),
            window.offset,
            window.limit.saturating_add(1)
        ));
        let rows = rows.await?;
        let count = sqlx::query_scalar!(
            r#"select count(*) as "n!" from (select 1 from api_keys where $1::text is null or tenant = $1 limit $2) x"#,
            tenant,
            TOTAL_MAX + 1
        );
        let total = window.total(rows.len(), self.queries.one(count)).await?;
        let items = rows.into_iter().map(KeyView::from).collect();
        Ok(Listed::cut(items, window, total, |key: &KeyView| Cursor { at: key.created_at, id: key.id.0 }))
    }

    /// Makes a key void for good; of one tenant, or of any. Repeating it changes nothing. `None`: there is no such key.
    pub async fn revoke_key(&self, tenant: Option<&TenantId>, id: KeyId) -> Result<Option<KeyView>, StoreError> {
        let row = sqlx::query_as!(
            ViewRow,
            "with k as (
                select id, tenant, revoked_at is null as is_good from api_keys
                where id = $1 and ($2::text is null or tenant = $2)
            ), t as (
                update tenants t set directory_version = directory_version + 1 from k where t.id = k.tenant and k.is_good
                returning t.directory_version
            )
            update api_keys a
            set revoked_at = coalesce(a.revoked_at, now()), version = coalesce((select directory_version from t), a.version)
            from k where a.id = k.id
            returning a.id, a.tenant, a.name, a.hint, a.scopes, a.created_at, a.expires_at, a.revoked_at, a.last_used_at",
            id.0,
            tenant.map(TenantId::as_str)
        );
        Ok(self.queries.optional(row).await?.map(KeyView::from))
    }

    /// The key with this hash, good or not.
    pub async fn key(&self, hash: &KeyHash) -> Result<Option<ApiKey>, StoreError> {
        let row = sqlx::query_as!(
            KeyRow,
            "select id, tenant, hash, scopes, expires_at, revoked_at, version from api_keys where hash = $1",
            hash.0.as_slice()
        );
        self.queries.optional(row).await?.map(ApiKey::try_from).transpose()
    }

    /// Whether any key was ever made.
    pub async fn has_keys(&self) -> Result<bool, StoreError> {
        self.queries.one(sqlx::query_scalar!(r#"select exists (select from api_keys) as "any!""#)).await
    }

    /// Notes when keys were last used; an earlier time changes nothing.
    pub async fn keys_used(&self, used: &[(KeyId, DateTime<Utc>)]) -> Result<(), StoreError> {
        let (ids, times): (Vec<Uuid>, Vec<DateTime<Utc>>) = used.iter().map(|(id, at)| (id.0, *at)).unzip();
        let update = sqlx::query!(
            "update api_keys k set last_used_at = x.at
            from unnest($1::uuid[], $2::timestamptz[]) as x (id, at)
            where k.id = x.id and (k.last_used_at is null or k.last_used_at < x.at)",
            &ids,
            &times
        );
        self.queries.execute(update).await.map(|_| ())
    }

    /// Makes sure that a tenant exists, and says whether it is new.
    pub async fn create_tenant(&self, tenant: &TenantId) -> Result<(TenantView, bool), StoreError> {
        let insert = sqlx::query!("insert into tenants (id) values ($1) on conflict do nothing", tenant.as_str());
        let is_new = self.queries.execute(insert).await? > 0;
        let read = sqlx::query_scalar!("select created_at from tenants where id = $1", tenant.as_str());
        let created_at = self.queries.one(read).await?;
        Ok((TenantView { id: tenant.clone(), created_at }, is_new))
    }

    /// Tenants, newest first, the system's own left out.
    pub async fn list_tenants(&self, window: &Window) -> Result<Listed<TenantView>, StoreError> {
        // Names are no positions: where two tenants were made at one instant, a hash of the name puts them in order.
        let rows = self.queries.all(sqlx::query!(
            r#"select t.id, t.created_at, md5(t.id)::uuid as "place!" from tenants t
            where t.id not like '\_%' and ($1::timestamptz is null or (t.created_at, md5(t.id)::uuid) < ($1, $2::uuid))
            order by t.created_at desc, md5(t.id)::uuid desc offset $3 limit $4"#,
            window.after_at(),
            window.after_id(),
            window.offset,
            window.limit.saturating_add(1)
        ));
        let rows = rows.await?;
        let count = sqlx::query_scalar!(
            r#"select count(*) as "n!" from (select 1 from tenants where id not like '\_%' limit $1) x"#,
            TOTAL_MAX + 1
        );
        let total = window.total(rows.len(), self.queries.one(count)).await?;
        let items =
            rows.into_iter().map(|t| (TenantView { id: TenantId::trusted(&t.id), created_at: t.created_at }, t.place));
        let listed = Listed::cut(items.collect(), window, total, |(t, place)| Cursor { at: t.created_at, id: *place });
        Ok(Listed {
            items: listed.items.into_iter().map(|(tenant, _)| tenant).collect(),
            total: listed.total,
            next: listed.next,
        })
    }
}
