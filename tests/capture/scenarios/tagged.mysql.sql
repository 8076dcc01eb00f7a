-- GTIDs with tags, across two files, so that PREVIOUS_GTIDS has them.
CREATE TABLE t (id INT PRIMARY KEY, n INT);
SET gtid_next = 'AUTOMATIC:blue';
INSERT INTO t VALUES (1, 1);
INSERT INTO t VALUES (2, 2);
SET gtid_next = 'AUTOMATIC';
FLUSH BINARY LOGS;
UPDATE t SET n = 5 WHERE id = 1;
SET gtid_next = 'AUTOMATIC:green_1';
DELETE FROM t WHERE id = 2;
SET gtid_next = 'AUTOMATIC';
