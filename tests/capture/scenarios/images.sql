-- Row images in part, as any session can have them.
CREATE TABLE t (id INT PRIMARY KEY, a INT, b VARCHAR(20), c BLOB);
SET binlog_row_image = 'FULL';
INSERT INTO t VALUES (1, 1, 'one', 'x'), (2, 2, 'two', 'y'), (3, 3, 'three', 'z');
SET binlog_row_image = 'MINIMAL';
INSERT INTO t VALUES (4, 4, 'four', 'w'), (5, NULL, NULL, NULL);
UPDATE t SET a = 11 WHERE id = 1;
UPDATE t SET id = 20 WHERE id = 2;
DELETE FROM t WHERE id = 5;
SET binlog_row_image = 'NOBLOB';
UPDATE t SET b = 'changed' WHERE id = 3;
UPDATE t SET c = 'changed' WHERE id = 4;
SET binlog_row_image = 'FULL';
