-- Every kind of object that PostgreSQL 15 and its contrib allow. SPACES is the directory for tablespaces.
CREATE ROLE reader NOLOGIN;
CREATE ROLE "odd ""role"" é" LOGIN PASSWORD 'secret' VALID UNTIL '2099-01-01' CONNECTION LIMIT 7;
GRANT reader TO "odd ""role"" é" WITH ADMIN OPTION;
ALTER ROLE reader SET work_mem = '7MB';
CREATE TABLESPACE fast OWNER reader LOCATION 'SPACES/fast';
CREATE TABLESPACE "odd é" LOCATION 'SPACES/odd é %';
CREATE DATABASE empty;
CREATE DATABASE "odd ""db"" é" TABLESPACE "odd é" CONNECTION LIMIT 42;
CREATE DATABASE bare TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C';
ALTER DATABASE bare SET statement_timeout = '1h';
COMMENT ON DATABASE empty IS 'nothing is in it';

SET client_min_messages = warning;
CREATE SCHEMA kinds AUTHORIZATION reader;
SET search_path = kinds, public;
CREATE EXTENSION adminpack; CREATE EXTENSION bloom; CREATE EXTENSION btree_gin; CREATE EXTENSION btree_gist;
CREATE EXTENSION citext; CREATE EXTENSION cube; CREATE EXTENSION earthdistance; CREATE EXTENSION dblink;
CREATE EXTENSION dict_int; CREATE EXTENSION file_fdw; CREATE EXTENSION fuzzystrmatch; CREATE EXTENSION hstore;
CREATE EXTENSION intarray; CREATE EXTENSION isn; CREATE EXTENSION lo; CREATE EXTENSION ltree; CREATE EXTENSION pageinspect;
CREATE EXTENSION pg_stat_statements; CREATE EXTENSION pg_trgm; CREATE EXTENSION pg_visibility; CREATE EXTENSION pgcrypto;
CREATE EXTENSION pgrowlocks; CREATE EXTENSION pgstattuple; CREATE EXTENSION postgres_fdw; CREATE EXTENSION seg;
CREATE EXTENSION tablefunc; CREATE EXTENSION tcn; CREATE EXTENSION unaccent; CREATE EXTENSION "uuid-ossp";
CREATE EXTENSION xml2; CREATE EXTENSION refint; CREATE EXTENSION moddatetime;

CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (x int, y text);
CREATE TYPE span AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE COLLATION german (provider = icu, locale = 'de-u-co-phonebk');
CREATE TEXT SEARCH CONFIGURATION plain (COPY = simple);
CREATE SEQUENCE odd_steps INCREMENT -3 MINVALUE -1000 MAXVALUE 10 START 10 CYCLE;

CREATE TABLE everything (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    serial serial,
    n numeric, t text COLLATE german, c citext, m mood, p pair, d positive, s span, h hstore, l ltree, j jsonb, x xml,
    a int[], u uuid, b bytea, i inet, bits bit varying, w tsvector, pt point, cu cube, dead boolean, at timestamptz,
    twice numeric GENERATED ALWAYS AS (n * 2) STORED,
    EXCLUDE USING gist (d WITH =, s WITH &&) DEFERRABLE
);
COMMENT ON COLUMN everything.t IS E'quotes '' and\nlines';
INSERT INTO everything (n, t, c, m, p, d, s, h, l, j, x, a, u, b, i, bits, w, pt, cu, dead, at)
SELECT i / 7.0, CASE i % 50 WHEN 0 THEN NULL ELSE 'Müller ' || md5(i::text) END, 'CaSe' || i, (ARRAY['sad', 'ok', 'happy']::mood[])[1 + i % 3],
    (i, 'y' || i)::pair, i, span(i, i + 0.5), hstore('k' || i, 'v'), ('a.b' || i % 10 || '.c')::ltree, jsonb_build_object('i', i, 'l', ARRAY[i, 2]),
    xmlelement(name e, i), ARRAY[i, i % 13, 7], uuid_generate_v5(uuid_ns_url(), i::text), digest(i::text, 'sha256'), ('10.0.' || i % 250 || '.1')::inet,
    i::bit(12), to_tsvector('plain', 'word' || i || ' common'), point(i % 100, i / 100), cube(ARRAY[i % 100, i / 100]), i % 2 = 0,
    '2026-01-01 00:00:00+00'::timestamptz + i * interval '1 hour'
FROM generate_series(1, 3000) i;
CREATE INDEX ON everything USING btree (t COLLATE "C" DESC NULLS LAST) INCLUDE (n) WHERE id > 10;
CREATE INDEX ON everything (lower(t), (n + 1));
CREATE UNIQUE INDEX ON everything (u);
CREATE INDEX ON everything USING hash (t);
CREATE INDEX ON everything USING gin (j jsonb_path_ops);
CREATE INDEX ON everything USING gin (w);
CREATE INDEX ON everything USING gin (t gin_trgm_ops, n);
CREATE INDEX ON everything USING gin (a gin__int_ops) WITH (fastupdate = on);
CREATE INDEX ON everything USING gist (l);
CREATE INDEX ON everything USING gist (cu);
CREATE INDEX ON everything USING spgist (pt);
CREATE INDEX ON everything USING spgist (i inet_ops);
CREATE INDEX ON everything USING brin (at) WITH (pages_per_range = 4, autosummarize = on);
CREATE INDEX ON everything USING bloom (t, serial) WITH (length = 80);
CREATE INDEX in_fast ON everything (id) TABLESPACE fast;
CREATE STATISTICS together (ndistinct, dependencies, mcv) ON m, dead FROM everything;
ALTER TABLE everything ALTER n SET STATISTICS 500;
ALTER TABLE everything SET (fillfactor = 70, autovacuum_enabled = off);

CREATE TABLE events (at date NOT NULL, region text, id int, what text) PARTITION BY RANGE (at);
CREATE TABLE events_old PARTITION OF events FOR VALUES FROM (MINVALUE) TO ('2026-01-01') TABLESPACE fast;
CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY LIST (region);
CREATE TABLE events_2026_eu PARTITION OF events_2026 FOR VALUES IN ('de', 'fr') PARTITION BY HASH (id);
CREATE TABLE events_2026_eu_0 PARTITION OF events_2026_eu FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE events_2026_eu_1 PARTITION OF events_2026_eu FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE events_rest PARTITION OF events DEFAULT;
CREATE TABLE events_2026_rest PARTITION OF events_2026 DEFAULT;
CREATE INDEX ON events (id, at);
INSERT INTO events SELECT '2025-06-01'::date + i % 900, (ARRAY['de', 'fr', 'us'])[1 + i % 3], i, md5(i::text) FROM generate_series(1, 2000) i;

CREATE TABLE parent (id int PRIMARY KEY, up int REFERENCES parent ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE child (more text CHECK (more <> 'no') NO INHERIT) INHERITS (parent);
INSERT INTO parent SELECT i, i / 2 + 1 FROM generate_series(1, 100) i;
INSERT INTO child VALUES (1000, 1, 'yes');

-- Values out of line: compressed by each method, and not at all; some longer than a megabyte.

CREATE TABLE long_values (id int PRIMARY KEY, packed text COMPRESSION pglz, lz text COMPRESSION lz4, loose text);
ALTER TABLE long_values ALTER loose SET STORAGE EXTERNAL;
INSERT INTO long_values
SELECT i, repeat(md5(i::text), 5000), repeat(md5(i::text), 6000), (SELECT string_agg(md5((i * j)::text), '') FROM generate_series(1, 2000) j)
FROM generate_series(1, 20) i;
UPDATE long_values SET loose = repeat('0123456789', 200000) WHERE id = 7;

CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY, t text);
INSERT INTO unlogged SELECT i, 'gone' FROM generate_series(1, 1000) i;
CREATE TABLE emptied_too (id int);
CREATE TABLE emptied (id int); INSERT INTO emptied VALUES (1); TRUNCATE emptied;
CREATE TABLE no_columns (); INSERT INTO no_columns DEFAULT VALUES;
CREATE TABLE dropped_columns (a int, b text, c int); INSERT INTO dropped_columns VALUES (1, 'x', 2);
ALTER TABLE dropped_columns DROP b, ADD d int DEFAULT 5;
CREATE TABLE "odd ""table"" é %" ("odd ""column""" int, "select" text); INSERT INTO "odd ""table"" é %" VALUES (1, 'é');

SELECT lo_from_bytea(4711, decode(repeat('00ff', 100000), 'hex'));
SELECT lo_from_bytea(4712, 'small');
COMMENT ON LARGE OBJECT 4711 IS 'large';
GRANT SELECT ON LARGE OBJECT 4712 TO reader;

CREATE VIEW looks AS SELECT id, t, m FROM everything WHERE dead WITH LOCAL CHECK OPTION;
CREATE RECURSIVE VIEW numbers (n) AS VALUES (1) UNION ALL SELECT n + 1 FROM numbers WHERE n < 10;
CREATE MATERIALIZED VIEW kept AS SELECT m, count(*) AS c, sum(n) AS s FROM everything GROUP BY m;
CREATE UNIQUE INDEX ON kept (m);
CREATE MATERIALIZED VIEW unfilled AS SELECT 1 AS one WITH NO DATA;
CREATE FUNCTION add(a int, b int DEFAULT 2) RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN a + b;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.more := coalesce(NEW.more, 'touched'); RETURN NEW; END $$;
CREATE PROCEDURE nothing() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
CREATE AGGREGATE product (numeric) (sfunc = numeric_mul, stype = numeric, initcond = '1');
CREATE OPERATOR @+@ (leftarg = int, rightarg = int, function = add);
CREATE CAST (mood AS int) WITH INOUT;
CREATE TRIGGER touch BEFORE INSERT ON child FOR EACH ROW EXECUTE FUNCTION touch();
CREATE RULE silent AS ON DELETE TO emptied DO INSTEAD NOTHING;
CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM 1; END $$;
CREATE EVENT TRIGGER seen ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION on_ddl();
ALTER TABLE parent ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY odd_rows ON parent AS RESTRICTIVE FOR SELECT TO reader USING (id % 2 = 1);
GRANT SELECT (id), UPDATE (up) ON parent TO reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA kinds GRANT SELECT ON TABLES TO reader;
CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'nowhere.invalid', dbname 'x');
CREATE USER MAPPING FOR reader SERVER far OPTIONS (user 'u', password 'p');
CREATE FOREIGN TABLE far_table (id int OPTIONS (column_name 'ID'), t text) SERVER far OPTIONS (table_name 'T');
CREATE PUBLICATION part FOR TABLE everything (id, t), parent WHERE (id > 5) WITH (publish = 'insert');
CREATE PUBLICATION whole FOR TABLES IN SCHEMA kinds WITH (publish = 'insert, truncate');
CREATE SUBSCRIPTION none CONNECTION 'host=nowhere.invalid' PUBLICATION p WITH (connect = false);
SELECT pg_create_physical_replication_slot('physical', true);
SELECT pg_create_logical_replication_slot('logical', 'pgoutput');
SELECT nextval('odd_steps') FROM generate_series(1, 5);
BEGIN; INSERT INTO emptied VALUES (100); PREPARE TRANSACTION 'left open é';
BEGIN; UPDATE parent SET up = 1 WHERE id = 50; SAVEPOINT s; DELETE FROM parent WHERE id = 100; PREPARE TRANSACTION 'left open too';
\connect "odd ""db"" é"
CREATE TABLE here (id int PRIMARY KEY, t text);
INSERT INTO here SELECT i, md5(i::text) FROM generate_series(1, 5000) i;
SELECT lo_from_bytea(1, 'of this database');
