-- Events that log_bin_compress has packed, and one that is too short to be.
SET GLOBAL log_bin_compress = ON, GLOBAL log_bin_compress_min_len = 10;
CREATE TABLE t (id INT PRIMARY KEY, s VARCHAR(400));
INSERT INTO t VALUES (1, REPEAT('a', 400)), (2, REPEAT('b', 400)), (3, REPEAT('c', 400));
BEGIN;
UPDATE t SET s = REPEAT('d', 300) WHERE id = 2;
DELETE FROM t WHERE id = 3;
COMMIT;
SET GLOBAL log_bin_compress = OFF;
INSERT INTO t VALUES (4, 'plain');
