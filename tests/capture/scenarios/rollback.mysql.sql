-- Transactions that are taken back, in whole or to a savepoint.
CREATE TABLE t (id INT PRIMARY KEY, n INT) ENGINE = InnoDB;
INSERT INTO t VALUES (1, 1), (2, 2);
BEGIN;
UPDATE t SET n = 10;
ROLLBACK;
BEGIN;
UPDATE t SET n = 20 WHERE id = 1;
SAVEPOINT half;
UPDATE t SET n = 20 WHERE id = 2;
ROLLBACK TO half;
COMMIT;
INSERT INTO t VALUES (3, 3);
