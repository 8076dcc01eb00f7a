-- Writes in statement format: they cannot be read as rows.
CREATE TABLE t (id INT PRIMARY KEY, n INT);
CREATE TABLE u (id INT PRIMARY KEY, n INT);
INSERT INTO t VALUES (1, 1), (2, 2);
INSERT INTO u VALUES (1, 1);
SET binlog_format = 'STATEMENT';
UPDATE t SET n = n + 1 WHERE id = 1;
SET @n = 5;
INSERT INTO t VALUES (3, @n);
SET binlog_format = 'ROW';
UPDATE t SET n = 9 WHERE id = 2;
