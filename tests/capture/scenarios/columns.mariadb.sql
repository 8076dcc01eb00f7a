-- COMPRESSED columns, which are packed in the binlog too.
CREATE TABLE packed (id INT PRIMARY KEY, t TEXT COMPRESSED, v VARCHAR(500) COMPRESSED, b BLOB COMPRESSED);
INSERT INTO packed VALUES (1, REPEAT('ab', 500), REPEAT('x', 400), REPEAT('\0\1', 300)), (2, '', 'short', NULL);
