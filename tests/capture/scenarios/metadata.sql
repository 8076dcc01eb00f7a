-- Table maps without names and signs: nothing but the server could tell what the columns are.
SET GLOBAL binlog_row_metadata = 'MINIMAL';
CREATE TABLE t (id INT PRIMARY KEY, n INT UNSIGNED);
INSERT INTO t VALUES (1, 4294967295);
UPDATE t SET n = 1;
SET GLOBAL binlog_row_metadata = 'FULL';
CREATE TABLE u (id INT PRIMARY KEY, n INT UNSIGNED);
INSERT INTO u VALUES (1, 4294967295);
