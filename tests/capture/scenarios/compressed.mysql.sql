-- Whole transactions in zstd, and others between them that are not.
CREATE TABLE t (id INT PRIMARY KEY, s VARCHAR(400));
SET binlog_transaction_compression = ON;
INSERT INTO t VALUES (1, REPEAT('a', 400)), (2, REPEAT('b', 400)), (3, REPEAT('c', 400));
BEGIN;
UPDATE t SET s = REPEAT('d', 300) WHERE id = 2;
DELETE FROM t WHERE id = 3;
COMMIT;
SET binlog_transaction_compression = OFF;
INSERT INTO t VALUES (4, 'plain');
