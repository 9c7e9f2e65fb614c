-- Endpoints may have a rate limit: requests per second, and how many may come at once after a silence. Both null: none.
alter table endpoints
    add column rate_limit_per_second double precision,
    add column rate_limit_burst int;
