-- Changes of documents in part (PARTIAL_UPDATE_ROWS), with and without the image before.
CREATE TABLE t (id INT PRIMARY KEY, j JSON, n INT);
SET binlog_row_value_options = 'PARTIAL_JSON';
INSERT INTO t VALUES (1, JSON_OBJECT('a', REPEAT('x', 200), 'list', JSON_ARRAY(1, 2, 3), 'c', 1), 0),
  (2, JSON_OBJECT('a', REPEAT('y', 200), 'n', NULL), 0), (3, NULL, 0);
UPDATE t SET j = JSON_SET(j, '$.c', 'changed') WHERE id = 1;
UPDATE t SET j = JSON_REMOVE(j, '$.list[1]'), n = 1 WHERE id = 1;
UPDATE t SET j = JSON_SET(j, '$.new', CAST('{"k": [1.5]}' AS JSON)) WHERE id < 3;
UPDATE t SET j = '[]' WHERE id = 3;
SET binlog_row_image = 'MINIMAL';
UPDATE t SET j = JSON_REPLACE(j, '$.n', 5) WHERE id = 2;
