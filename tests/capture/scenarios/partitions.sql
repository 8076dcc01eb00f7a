-- Partitioned tables, whose rows carry extra data on MySQL; an update moves a row.
CREATE TABLE t (id INT PRIMARY KEY, n INT, s VARCHAR(10)) PARTITION BY RANGE (id)
  (PARTITION low VALUES LESS THAN (10), PARTITION high VALUES LESS THAN MAXVALUE);
INSERT INTO t VALUES (1, 1, 'a'), (2, 2, 'b'), (20, 20, 'c');
UPDATE t SET id = 30, s = 'moved' WHERE id = 1;
UPDATE t SET n = n + 1 WHERE id > 1;
DELETE FROM t WHERE id = 2;
ALTER TABLE t TRUNCATE PARTITION high;
INSERT INTO t VALUES (3, 3, 'd'), (40, 40, 'e');
